"""Limits on what others wrote: links, pipes, depth, numbers, archives, copies."""

import contextlib
import json
import os
import stat
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triskel.core.untrusted import (
    DEEP_MOST,
    TOML_MOST,
    UnreadableError,
    copied,
    data_of,
    json_in,
    json_of,
    members,
    printable,
    safetensors_at,
    table_of,
    text_of,
    toml_of,
)
from triskel.errors import CheckpointError
from triskel.export.adapters import adapter_copied


def test_a_plain_file_is_read_and_one_that_is_not_there_is_an_error_of_the_system(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_text("hello")
    assert (data_of(tmp_path / "a"), text_of(safetensors_at(tmp_path / "a"))) == (b"hello", "hello")
    with pytest.raises(FileNotFoundError):
        data_of(tmp_path / "b")
    with pytest.raises(UnreadableError, match="more than 4 bytes"):
        data_of(tmp_path / "a", most=4)


def linked(place: Path) -> None:
    place.symlink_to("/etc/passwd")


def dangling(place: Path) -> None:
    place.symlink_to(place.parent / "nowhere")


@pytest.mark.parametrize("make", [linked, dangling, os.mkfifo, Path.mkdir])
def test_what_is_no_plain_file_is_refused_at_once(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "x")
    for read in (data_of, safetensors_at, json_in):
        with pytest.raises(UnreadableError, match=r"is a link|is no plain file"):
            read(tmp_path / "x")


HEADERS: dict[str, Callable[[], str]] = {
    "very many tensors": lambda: ",".join(
        f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000)
    ),
    "very many sizes": lambda: '"a":{"dtype":"F32","shape":[0' + ",1" * 300_000
    + '],"data_offsets":[0,0]}',
    "more than is read": lambda: '"__metadata__":{"a":"' + "x" * (32 << 20) + '"}',
    "sizes behind a string that is not closed": lambda: '"a":[0' + ",1" * 300_000 + '],"b',
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_of_tensors_has_limits(what: str, tmp_path: Path) -> None:
    """38 MB of it took 358 MB and more in the library that reads it."""
    place = tmp_path / "adapter_model.safetensors"
    header = ("{" + HEADERS[what]() + "}").encode()
    place.write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "adapter_config.json").write_text("{}")
    for read in (safetensors_at, lambda file: adapter_copied(file.parent, tmp_path / "out")):
        with pytest.raises((UnreadableError, CheckpointError), match="header is larger than is"):
            read(place)


def test_what_is_kept_beside_tensors_may_be_long(tmp_path: Path) -> None:
    """A checkpoint keeps the rows of all rounds there."""
    place = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, place, metadata={"rows": json.dumps(list(range(600_000)))})
    assert safetensors_at(place) == place
    place.write_bytes(b"\xff" * 8)
    assert safetensors_at(place) == place, "the library says what is wrong with it"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deep"),
        ("[" * (DEEP_MOST + 1) + "]" * (DEEP_MOST + 1), "deep"),
        ('{"a":' * 900 + "1" + "}" * 900, "deep"),
        ("1" * 30, "64 bits"),
        ("[" + "1," * 2_000_000 + "1]", "more than 1,500,000 values"),
        ("9" * 5000, "digits"),
    ],
)
def test_json_has_limits(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        json_of(text)


def test_json_within_them_is_what_json_is() -> None:
    deep = "[" * DEEP_MOST + "]" * DEEP_MOST
    assert json_of(deep) == json.loads(deep)
    numbers = f"[{2**63 - 1}, -{2**63}, {2**64 - 1}, 1e300, 12345678901234567890.5]"
    assert json_of(numbers) == json.loads(numbers)
    assert table_of({"a": 1}) == {"a": 1}
    with pytest.raises(UnreadableError, match="must hold an object, got list"):
        table_of([])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a = " + "[" * 100_000, "deep"),
        ("a = " + "[" * 70 + "]" * 70, "deep"),
        (f"a = {2**63}", "64 bits"),
        ("a = " + "9" * 5000, "too long"),
        ("#" * 2_000_000, "more than"),
        ("a = ", "Invalid value"),
    ],
)
def test_toml_has_limits(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        toml_of(text)


DEEP_KEY = ".".join(["a"] * 20)
HIDDEN = {
    "as it is": f"{DEEP_KEY} = 1",
    "quoted parts": '"a b".' * 20 + "c = 1",
    "a header": f"[{DEEP_KEY}]",
    "an inline table": f"x = [1, {{{DEEP_KEY} = 1}}]",
    "after a string with a quote at its end": f'x = {{a = """v"""", {DEEP_KEY} = """w""""}}',
    "after a literal with a quote at its end": f"x = '''it''''\n{DEEP_KEY} = 1",
    "after an escaped quote": f'x = "\\""\n{DEEP_KEY} = 1',
    "after a backslash in a literal": f"x = '\\'\n{DEEP_KEY} = 1",
    "after a quote in a comment": f'# "\n{DEEP_KEY} = 1',
    "between comments with quotes": f"a = 1 # '''\n{DEEP_KEY} = 1\n# '''",
}


@pytest.mark.parametrize("where", HIDDEN)
def test_a_key_of_many_parts_is_refused_before_it_costs_memory(where: str) -> None:
    """tomllib keeps every beginning of a key: 200,000 parts took more than 24 GB."""
    with pytest.raises(UnreadableError, match="more than 16 parts"):
        toml_of(HIDDEN[where])


def test_dots_in_strings_and_comments_are_no_parts_of_keys() -> None:
    dots = "a." * 99
    text = (
        f"x = \"{dots}\"\ny = '{dots}'\nz = \"\"\"{dots}\n{dots}\"\"\"\n# {dots}\nw = '''{dots}'''"
    )
    assert toml_of(f"{text}\nv = {[0.5] * 100}")["x"] == dots


CROWDED: dict[str, Callable[[int], str]] = {
    "keys of parts": lambda i: "a." * 15 + f"k{i} = 1",
    "tables in tables": lambda i: f"[k{i}" + ".a" * 15 + "]",
    "lists of tables": lambda _: "[[a]]",
    "one table after the other": lambda i: f"[k{i}]",
    "inline tables": lambda i: f"k{i} = {{a = {{a = {{}}}}}}",
}


@pytest.mark.parametrize("what", CROWDED)
def test_toml_takes_memory_by_its_length_only(what: str) -> None:
    """An eighth of the largest takes an eighth of 200 MB at most."""
    lines = [CROWDED[what](i) for i in range(20_000)]
    text = "\n".join(lines)[: TOML_MOST // 8].rpartition("\n")[0]
    tracemalloc.start()
    try:
        with contextlib.suppress(UnreadableError):
            toml_of(text)
        assert tracemalloc.get_traced_memory()[1] < 25 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sign", ['"', "'", '"""\\', "'''\"", '""x', '"\\', '"\n', ".", "[", "a."])
def test_toml_that_means_to_keep_its_reader_busy_is_soon_refused(sign: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        toml_of((sign * TOML_MOST)[:TOML_MOST])
    assert time.process_time() - start < 10


def archive(place: Path, *entries: tuple[str, bytes, int]) -> Path:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data, kind in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = kind << 16
            packed.writestr(info, data)
    return place


def test_an_archive_is_inflated_within_limits_whatever_it_says(tmp_path: Path) -> None:
    good = archive(tmp_path / "a.zip", ("x/a", b"1", 0), ("b", b"22", stat.S_IFREG))
    assert members(good, most=3) == {"x/a": b"1", "b": b"22"}
    with pytest.raises(UnreadableError, match="more than 2 bytes"):
        members(good, most=2)
    with pytest.raises(UnreadableError, match="more than 1 files"):
        members(good, most=9, names=1)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", bytes(200 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 300_000
    with pytest.raises(UnreadableError, match="more than"):
        members(tmp_path / "bomb.zip", most=1 << 20)


@pytest.mark.parametrize(
    "entry",
    [("../a", b"", 0), ("/a", b"", 0), ("a/../b", b"", 0), ("c:\\a", b"", 0), ("a//b", b"", 0),
     ("l", b"/etc", stat.S_IFLNK), ("p", b"", stat.S_IFIFO)],
)  # fmt: skip
def test_an_archive_holds_files_of_one_folder(
    entry: tuple[str, bytes, int], tmp_path: Path
) -> None:
    with pytest.raises(UnreadableError, match="no file of a folder"):
        members(archive(tmp_path / "a.zip", entry), most=99)


def test_a_folder_is_copied_without_links(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    (source / "in").mkdir(parents=True)
    (source / "in" / "a").write_text("a")
    (source / "b").write_text("b")
    copied(source, target, wanted=lambda place: place != "b")
    assert [p.relative_to(target).as_posix() for p in target.rglob("*")] == ["in", "in/a"]
    with pytest.raises(UnreadableError, match="more than is copied"):
        copied(source, target, most=1)
    (source / "key").symlink_to("/etc/passwd")
    with pytest.raises(UnreadableError, match="is a link"):
        copied(source, tmp_path / "other")
    (source / "key").unlink()
    (source / "c").symlink_to(source / "in")
    with pytest.raises(UnreadableError, match="is a link"):
        copied(source, tmp_path / "other")


@pytest.mark.parametrize("planted", ["in", "in/a"])
def test_a_copy_writes_through_no_link(planted: str, tmp_path: Path) -> None:
    source, target, victim = tmp_path / "from", tmp_path / "to", tmp_path / "victim"
    (source / "in").mkdir(parents=True)
    (source / "in" / "a").write_text("evil")
    victim.mkdir()
    (victim / "a").write_text("mine")
    (target / planted).parent.mkdir(parents=True)
    (target / planted).symlink_to(victim if planted == "in" else victim / "a")
    with pytest.raises(UnreadableError, match="is a link"):
        copied(source, target)
    assert (victim / "a").read_text() == "mine"


@pytest.mark.parametrize("word", ["a\rb", "a\nb", "\x1b[2J", "a\x07", "\u2028", "a\u202eb", "\x9b"])
def test_words_that_rewrite_a_terminal_are_told(word: str) -> None:
    assert not printable(word)
    assert printable("Zoë@lab.ch of the bank")


def test_nothing_that_is_loaded_may_bring_code() -> None:
    """Every call that loads a folder of transformers says so, or says why not."""
    source = Path(__file__).parents[2] / "src" / "triskel"
    bare: list[str] = []
    for file in sorted(source.rglob("*.py")):
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if "from_pretrained(" in line and "trust_remote_code=False" not in "".join(
                lines[number : number + 4]
            ):
                bare.append(f"{file.name}: {line.strip()}")
    assert not [
        line
        for line in bare
        if not line.startswith(("card_code.py", "adapters.py")) and "**options" not in line
        and "PeftModel" not in line and "from_pretrained(FOLDER" not in line  # a sentence
    ]  # fmt: skip
    for name in ("model/load.py", "model/peft_folder.py"):
        assert '"trust_remote_code": False' in (source / name).read_text(encoding="utf-8")
