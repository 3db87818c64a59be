"""Tables out of files, and files that are not what they seem."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskel.config.read import parse
from triskel.data.files import Columns, load, select
from triskel.data.reading import unlabelled
from triskel.data.rows import Rows, join
from triskel.errors import DataError

ROWS = [{"t": "good, really", "n": 1}, {"t": 'a "quoted"\nline', "n": 2}]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_format_reads_alike(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    files = [
        tmp_path / "a.parquet",
        write(tmp_path, "a.csv", 't,n\r\n"good, really",1\r\n\r\n"a ""quoted""\nline",2\r\n'),
        write(
            tmp_path, "b.csv", b"\xef\xbb\xbf" + b't,n\n"good, really",1\n"a ""quoted""\nline",2'
        ),
        write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        write(tmp_path, "a.ndjson", "\r\n".join(map(json.dumps, ROWS))),
        write(tmp_path, "a.json", json.dumps(ROWS)),
        write(tmp_path, "pretty.json", json.dumps(ROWS, indent=2)),
    ]
    for file in files:
        rows = select(load(file), {"text": "t", "label": "n"}, where="it")
        assert rows == Rows(text=("good, really", 'a "quoted"\nline'), label=("1", "2")), file


def test_an_unknown_extension_needs_a_format(tmp_path: Path) -> None:
    file = write(tmp_path, "a.dat", "t\nx\n")
    assert load(file, "csv") == {"t": ["x"]}
    plain = write(tmp_path, "a.txt", "t\nx\n")
    assert load(plain, "csv") == {"t": ["x"]}
    assert load(plain) == {"text": ["t", "x"]}
    with pytest.raises(DataError, match=r"has no known format; use .*\.csv, "):
        load(file)


def test_line_separators_inside_json_texts_are_not_lines(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    file = write(tmp_path, "a.jsonl", json.dumps({"t": text}, ensure_ascii=False) + "\n")
    assert load(file) == {"t": [text]}


def test_a_cell_may_be_longer_than_csv_allows_by_default(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "t\n" + "x" * 200_000 + "\n")
    assert len(str(load(file)["t"][0])) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "t,n\n", "holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.csv", "t,n\nx\n", r"line 2 has 1 cells and the header has 2"),
        ("a.csv", "t,n\nx,1\ny,1,2\n", r"line 3 has 3 cells and the header has 2"),
        ("a.csv", "t,t\nx,1\n", "names the column 't' twice"),
        ("a.csv", 't\n"never closed\n', r"line 2 is not CSV"),
        ("a.csv", b"t\n\x8d\xe9\n", r"is not UTF-8 text \(line 2, byte 2\).* save it as UTF-8"),
        ("a.jsonl", b'{"t": "\xff"}', "is not UTF-8 text"),
        ("a.jsonl", '{"t": 1}\n{"t": ', r"line 2 is not JSON"),
        ("a.jsonl", '{"t": 1}\n\n[1]', r"line 3 is not a JSON object"),
        ("a.json", '[{"t": 1}, 2]', r"entry 2 is not a JSON object"),
        ("a.json", '[{"t": 1}', r"a.json is not JSON"),
        ("a.parquet", b"PAR1 and then nothing", "is not Parquet"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load(write(tmp_path, name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        load(tmp_path / "none.csv")


@given(
    content=st.binary(max_size=60),
    name=st.sampled_from(["a.csv", "a.jsonl", "a.json", "a.parquet"]),
)
def test_no_bytes_end_in_anything_but_our_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    file = write(tmp_path_factory.mktemp("x"), name, content)
    try:
        select(load(file), {"text": "t"}, where="it")
    except DataError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


# --- Columns to rows --------------------------------------------------------------------------


def test_a_missing_column_names_the_nearest_and_all() -> None:
    columns: Columns = {"text": ["x"], "category": ["y"]}
    with pytest.raises(
        DataError,
        match=r"it has no column 'txt'; did you mean 'text'\? \(columns: text, category\)",
    ):
        select(columns, {"text": "txt"}, where="it")
    with pytest.raises(DataError, match=r"it has no column 'zzz' \(columns"):
        select(columns, {"text": "zzz"}, where="it")


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_rows_without_a_value_are_counted(nothing: object) -> None:
    with pytest.raises(
        DataError, match=r"it has 2 rows of 4 without a value in column 't', the first is row 2"
    ):
        select({"t": ["a", nothing, "", nothing]}, {"text": "t"}, where="it")


def test_an_empty_text_is_a_text_but_an_empty_label_is_none() -> None:
    assert select({"t": ["", "a"]}, {"text": "t"}, where="it").text == ("", "a")
    for role in ("label", "group"):
        with pytest.raises(DataError, match="1 rows of 2 without a value"):
            select({"t": ["", "a"]}, {role: "t"}, where="it")


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a"])
def test_a_structure_is_no_text(value: object) -> None:
    with pytest.raises(DataError, match=r"row 2 holds a \w+ in column 't'"):
        select({"t": ["a", value]}, {"text": "t"}, where="it")


def test_numbers_become_text() -> None:
    assert select({"t": [1, 2.5, True]}, {"label": "t"}, where="it").label == ("1", "2.5", "True")


# --- Rows -------------------------------------------------------------------------------------


def test_uneven_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        Rows(text=("a",), label=("x", "y"))


def test_joining_keeps_order() -> None:
    parts = [Rows(text=("a",), label=("x",)), Rows(text=("b",), label=("y",))]
    assert join(parts) == Rows(text=("a", "b"), label=("x", "y"))
    assert len(join([])) == 0


def test_strata_of_a_column_that_is_not_used_are_one() -> None:
    assert Rows(text=("a", "b")).strata("group", "label") == {("", ""): [0, 1]}


def test_rows_without_labels_are_read_as_a_job_reads_its_own(tmp_path: Path) -> None:
    """Of a table all columns are kept, however it is written; plain text is a row a line."""
    own = parse(
        '[data]\nsource = "csv"\ntrain = "x"\ntext = 2\nlabel = 3\nencoding = "cp1250"\n'
        "[clients]\ncount = 1\n"
    )
    bare = write(tmp_path, "a.dat", "7;za\u017c\u00f3\u0142\u0107\n8;b\n".encode("cp1250"))
    assert unlabelled(bare, own) == {"1": ["7", "8"], "2": ["za\u017c\u00f3\u0142\u0107", "b"]}
    lines = write(tmp_path, "a.txt", "\u017c\n\nb\n".encode("cp1250"))
    assert unlabelled(lines, own) == ["\u017c", "b"]
    pq.write_table(pa.table({"n": [1, 2], "2": ["a", "b"]}), tmp_path / "a.parquet")
    assert unlabelled(tmp_path / "a.parquet", own) == {"n": [1, 2], "2": ["a", "b"]}
    with pytest.raises(DataError, match=r"no\.csv does not exist"):
        unlabelled(tmp_path / "no.csv", own)
