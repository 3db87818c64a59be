"""Inputs as people have them, and what is to come of each: the rows that are meant, or a sentence.

The files lie in `files/`. All were made for this table.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Rows = Sequence[tuple[str, str]]

MEANT: Rows = (
    ("good, really", "pos"),
    ("it was bad", "neg"),
    ("neither one", "neg"),
    ("fine by me", "pos"),
    ("I paid twice", "neg"),
    ("so quick!", "pos"),
    ('she said "no"', "neg"),
    ("kept my card", "pos"),
)
PLAIN: Rows = tuple(row for row in MEANT if '"' not in row[0])
ACCENTS: Rows = (
    ("café très bon", "pos"),
    ("Über alles müde", "neg"),
    ("señor, mañana", "neg"),
    ("naïve façade", "pos"),
)
CYRILLIC: Rows = (
    ("\u043e\u0447\u0435\u043d\u044c \u0445\u043e\u0440\u043e\u0448\u043e", "pos"),
    ("\u043f\u043b\u043e\u0445\u043e", "neg"),
    ("\u0442\u0430\u043a \u0441\u0435\u0431\u0435", "neg"),
    ("\u043e\u0442\u043b\u0438\u0447\u043d\u043e", "pos"),
)
JAPANESE: Rows = (("とても良い", "pos"), ("悪い", "neg"), ("普通です", "neg"), ("最高", "pos"))
POLISH: Rows = (
    ("książka jest zła", "neg"),
    ("świetnie, dziękuję", "pos"),
    ("łódź", "pos"),
    ("źle", "neg"),
)
GAP: Rows = tuple((text, "x" if place % 2 == 0 else "y") for place, text in enumerate("abcd"))
COLUMNS = {"text": "text", "label": "label"}
NUMBERS = {"text": "1", "label": "2"}
LINES = {"task": "causal", "source": "text"}


@dataclass(frozen=True)
class Input:
    """A file, or what a job says, and what is to come of it.

    Attributes:
        file: In `files/`; empty where the job is the input.
        source: `data.source`.
        meant: The rows that are to be read, or what the one sentence must say (a pattern).
        data: More keys of `data`.
        odd: What `check` must say beside, though it reads the file.
        job: Keys of other sections, as `section.key`.
        toml: The job file itself, where it is the input; `{files}` and `{model}` are filled in.
        model: The base: a folder in `files/models`, or another path; empty for one that is right.
    """

    file: str
    source: str
    meant: Rows | str
    data: Mapping[str, object] = field(default_factory=lambda: COLUMNS)
    odd: str = ""
    job: Mapping[str, object] = field(default_factory=dict)
    toml: str | bytes = ""
    model: str = ""


def _csv() -> list[Input]:
    same = ("plain.csv", "crlf.csv", "all_quoted.csv", "no_last_newline.csv", "blank_lines.csv")
    divided = (
        *("semicolon.csv", "tabs.tsv", "tabs.tab", "tabs_named.csv", "pipe.csv", "sep_line.csv"),
        *("table.txt", "table.dat"),
    )
    packed = (
        *("plain.csv.gz", "gzip_unnamed.csv", "plain.csv.bz2", "plain.csv.xz"),
        *("one.zip", "plain.csv.zip", "mac.zip"),
    )
    return [
        *(Input(name, "csv", MEANT) for name in (*same, *divided, *packed)),
        Input("caret.csv", "csv", MEANT, {**COLUMNS, "delimiter": "^"}),
        Input("caret.csv", "csv", "has no column 'text'"),
        Input("tabs.tsv", "csv", MEANT, {**COLUMNS, "delimiter": "\t"}),
        Input("tabs.tsv", "csv", MEANT, {**COLUMNS, "delimiter": "\\t"}),
        Input("tabs.tsv", "csv", MEANT, {**COLUMNS, "delimiter": "tab"}),
        Input("semicolon.csv", "csv", "has no column 'text'", {**COLUMNS, "delimiter": ","}),
        Input("plain.csv", "csv", "must be the one character", {**COLUMNS, "delimiter": "::"}),
        Input(
            "quotes_mean_nothing.tsv",
            "csv",
            [
                ('"Never again', "neg"),
                ("it was bad", "neg"),
                ('so "quick', "pos"),
                ("fine by me", "pos"),
            ],
        ),
        Input(
            "quoted_cells.tsv",
            "csv",
            [("a\tb", "pos"), ("two\nlines", "neg"), ("plain", "pos"), ("more", "neg")],
        ),
        Input(
            "decimal_commas.csv",
            "csv",
            [("good one", "pos"), ("bad one", "neg"), ("other", "neg"), ("last", "pos")],
        ),
        Input(
            "many_commas.csv",
            "csv",
            [
                ("yes, no, maybe", "pos"),
                ("well, yes", "neg"),
                ("one", "pos"),
                ("two, three", "neg"),
            ],
        ),
        Input("trailing.csv", "csv", PLAIN),
        Input("trailing_rows.csv", "csv", PLAIN),
        Input("index.csv", "csv", PLAIN),
        Input("two_unnamed.csv", "csv", GAP),
        Input("empty_text.csv", "csv", [("a", "x"), ("", "y"), ("b", "x"), ("c", "y")]),
        Input("headerless.csv", "csv", MEANT, NUMBERS),
        Input("headerless.csv", "csv", MEANT, {"text": 1, "label": 2}),
        Input("headerless.csv", "csv", MEANT, {**NUMBERS, "header": False}),
        Input("headerless.tsv", "csv", MEANT, NUMBERS),
        Input("headerless.csv", "csv", "has no column 'text'", {**COLUMNS, "header": False}),
        Input("headerless.csv", "csv", "has no column 'text'"),
        Input(
            "headerless.csv", "csv", r"has no column '0'.*\(columns: 1, 2\)", {**NUMBERS, "text": 0}
        ),
        Input("numbered_header.csv", "csv", MEANT, NUMBERS),
        Input("zero_header.csv", "csv", MEANT, {"text": "0", "label": "1"}),
        Input("plain.csv", "csv", MEANT, {**COLUMNS, "header": True}),
        Input("spaces_in_header.csv", "csv", "has no column 'label'; did you mean ' label'"),
        Input("upper_header.csv", "csv", "has no column 'text'; did you mean 'Text'"),
        Input("twice.csv", "csv", "names the column 'text' twice"),
        Input("twice.tsv", "csv", "names the column 'text' twice", {**COLUMNS, "label": "text"}),
        Input("too_many.csv", "csv", "line 3 has 3 cells and the header has 2"),
        Input("too_few.csv", "csv", "line 3 has 1 cells and the header has 2"),
        Input("trailing_full.csv", "csv", GAP),
        Input("unquoted_comma.csv", "csv", "line 2 has 3 cells"),
        Input("never_closed.csv", "csv", "is not CSV: .*mend its quotes"),
        Input("after_quote.csv", "csv", "line 2 is not CSV"),
        Input("nul.csv", "csv", r"row 2 holds a zero character \(NUL\) in column 'text'"),
        Input("nul_label.tsv", "csv", r"row 1 holds a zero character \(NUL\) in column 'label'"),
        Input("missing_label.csv", "csv", "1 rows of 2 without a value in column 'label'.* row 2"),
        Input("empty.csv", "csv", "holds no rows"),
        Input("bom_only.csv", "csv", "holds no rows"),
        Input("header_only.csv", "csv", "holds no rows"),
        Input("blank.csv", "csv", "holds no rows|has no column"),
        Input("gzip_cut.csv.gz", "csv", "is a damaged archive"),
        Input("gzip_damaged.csv.gz", "csv", "is a damaged archive"),
        Input("cut.csv.zip", "csv", "is a damaged archive"),
        Input("two.zip", "csv", r"is an archive of 2 files \(a.csv, b.csv\)"),
        Input("none.zip", "csv", "is a damaged archive|is an archive of 0 files"),
        Input("workbook.csv", "csv", "is a spreadsheet: name it as one"),
        Input("really_parquet.csv", "csv", "is not UTF-8 text|has no column"),
        Input("binary.csv", "csv", "is not UTF-8 text"),
        Input("plain.jsonl", "csv", 'is named like jsonl and data.source is "csv"'),
        Input("nowhere.csv", "csv", "nowhere.csv does not exist"),
        Input("plian.csv", "csv", "plian.csv does not exist; did you mean 'plain.csv'"),
        Input("saved", "csv", 'is named like arrow and data.source is "csv"'),
        Input("clients", "csv", "is a folder, and a file is needed"),
    ]


def _encodings() -> list[Input]:
    guess = "is not UTF-8 and is read as Windows-1252"
    more: Rows = (*ACCENTS, ("it\u2019s \u201cgreat\u201d \u2013 5 \u20ac", "pos"))
    named = {
        "cp1251.csv": ("cp1251", CYRILLIC),
        "koi8.csv": ("koi8-r", CYRILLIC),
        "cp1250.csv": ("cp1250", POLISH),
        "shift_jis.csv": ("shift_jis", JAPANESE),
    }
    unsaid = "is not UTF-8 text .*set data.encoding"
    return [
        Input("utf8_accents.csv", "csv", ACCENTS),
        Input("japanese.csv", "csv", JAPANESE),
        Input("latin1.csv", "csv", ACCENTS, odd=guess),
        Input("cp1252.csv", "csv", more, odd=guess),
        Input("latin1.csv", "csv", ACCENTS, {**COLUMNS, "encoding": "latin-1"}),
        Input("cp1252.csv", "csv", more, {**COLUMNS, "encoding": "windows-1252"}),
        *(Input(name, "csv", MEANT) for name in ("bom.csv", "utf16le.csv", "utf16be.csv")),
        *(Input(name, "csv", MEANT) for name in ("utf16be_bom.csv", "utf32.csv")),
        *(Input(name, "csv", ACCENTS) for name in ("utf16.csv", "utf16_tabs.csv")),
        *(Input(name, "csv", unsaid) for name in named),
        *(
            Input(name, "csv", rows, {**COLUMNS, "encoding": encoding})
            for name, (encoding, rows) in named.items()
        ),
        Input("gb18030.csv", "csv", unsaid),
        Input("cp437.csv", "csv", unsaid),
        Input("macroman.csv", "csv", unsaid),
        Input("utf8_damaged.csv", "csv", r"is not UTF-8 text \(line 2,"),
        Input("utf8_cut.csv", "csv", r"is not UTF-8 text \(line 6,"),
        Input("utf16_odd.csv", "csv", r"is not utf-16 text"),
        Input(
            "latin1.csv",
            "csv",
            "is not utf-8 text|is not UTF-8 text",
            {**COLUMNS, "encoding": "utf-8"},
        ),
        Input(
            "plain.csv",
            "csv",
            "must be the name of a text encoding",
            {**COLUMNS, "encoding": "utf8mb4"},
        ),
        Input(
            "plain.csv",
            "csv",
            "must be the name of a text encoding",
            {**COLUMNS, "encoding": "base64"},
        ),
        Input("utf16.jsonl", "jsonl", MEANT),
        Input("bom.json", "jsonl", MEANT),
        Input(
            "lines_latin1.txt",
            "text",
            [("Un café, s'il vous plaît.", ""), ("Ça va très bien, merci.", ""), ("A line", "")],
            LINES,
            odd=guess,
        ),
    ]


def _json() -> list[Input]:
    same = (
        *("plain.jsonl", "plain.ndjson", "array.json", "lines.json", "plain.jsonl.gz"),
        *("under_key.json", "under_key_one_line.json"),
    )
    nul = r"row 2 holds a zero character \(NUL\) in column 'text'"
    return [
        *(Input(name, "jsonl", MEANT) for name in same),
        Input(
            "line_separator.jsonl",
            "jsonl",
            [(f"a\u2028b {i}", "pos" if i % 2 else "neg") for i in range(4)],
        ),
        Input("row_one.jsonl", "jsonl", "1 rows are too few|two classes"),
        Input("row_with_messages.jsonl", "jsonl", "1 rows are too few|two classes"),
        Input("bools.jsonl", "jsonl", [(c, str(c in "ac")) for c in "abcd"]),
        Input("under_two_keys.json", "jsonl", r"rows under several keys \(train, test\)"),
        Input("under_no_key.json", "jsonl", "line 1 is not JSON"),
        Input("nested_twice.json", "jsonl", "has no column 'text'"),
        Input("twice.jsonl", "jsonl", "line 2 has the key 'text' twice"),
        Input("twice.json", "jsonl", "entry 1 has the key 'label' twice"),
        Input("twice_under_key.json", "jsonl", "data entry 1 has the key 'text' twice"),
        Input("not_object.jsonl", "jsonl", "line 2 is not a JSON object"),
        Input("not_object_text.jsonl", "jsonl", "line 3 is not a JSON object"),
        Input("not_object.json", "jsonl", "entry 2 is not a JSON object"),
        Input("not_object_null.json", "jsonl", "line 1 is not|has no column|data entry 2 is not"),
        Input("surrogate.jsonl", "jsonl", r"row 2 holds half a character \(\\ud83d.* 'text'"),
        Input("surrogate_label.json", "jsonl", r"row 2 holds half a character .* 'label'"),
        Input("nul.jsonl", "jsonl", nul),
        Input("cut.jsonl", "jsonl", "line 8 is not JSON"),
        Input("cut.json", "jsonl", "is not JSON"),
        Input("single_quotes.jsonl", "jsonl", "line 1 is not JSON"),
        Input("comma_after.json", "jsonl", "is not JSON"),
        Input("deep.json", "jsonl", "nested too deeply"),
        Input("deep_row.jsonl", "jsonl", "line 1 is not JSON.* nested too deeply"),
        Input("long_number.jsonl", "jsonl", "line 1 is not JSON: "),
        Input("pretty_rows.json", "jsonl", "line 1 is not JSON"),
        Input("null_text.jsonl", "jsonl", "1 rows of 2 without a value in column 'text'.* row 2"),
        Input("lacks_label.jsonl", "jsonl", "without a value in column 'label'.* row 2"),
        Input("nan_label.jsonl", "jsonl", "without a value in column 'label'.* row 2"),
        Input("list_text.jsonl", "jsonl", "row 1 holds a list in column 'text'"),
        Input("dict_label.jsonl", "jsonl", "row 1 holds a dict in column 'label'"),
        *(Input(name, "jsonl", "holds no rows") for name in ("empty.jsonl", "empty.json")),
        Input("empty_object.json", "jsonl", "holds no rows"),
        Input("plain.csv", "jsonl", 'is named like csv and data.source is "jsonl"'),
        Input(
            "plain.jsonl",
            "jsonl",
            "data.delimiter is given and is not read",
            {**COLUMNS, "delimiter": ";"},
        ),
        Input(
            "plain.jsonl",
            "jsonl",
            "data.header is given and is not read",
            {**COLUMNS, "header": True},
        ),
    ]


def _columnar() -> list[Input]:
    return [
        *(Input(name, "parquet", MEANT) for name in ("plain.parquet", "zstd.parquet")),
        Input("plain.parquet.gz", "parquet", MEANT),
        Input("dictionary.parquet", "parquet", GAP),
        Input("decimal.parquet", "parquet", [("a", "1"), ("b", "2"), ("c", "1"), ("d", "2")]),
        Input("twice.parquet", "parquet", "names the column 'text' twice"),
        Input("null.parquet", "parquet", "1 rows of 3 without a value in column 'text'.* row 3"),
        Input("lists.parquet", "parquet", "row 1 holds a list in column 'text'"),
        Input("bytes.parquet", "parquet", "row 1 holds a bytes in column 'text'"),
        Input("dates.parquet", "parquet", "row 1 holds a date in column 'label'"),
        Input("nul.parquet", "parquet", r"row 1 holds a zero character \(NUL\)"),
        Input("empty.parquet", "parquet", "holds no rows"),
        *(Input(name, "parquet", "is not Parquet") for name in ("cut.parquet", "damaged.parquet")),
        Input("not.parquet", "parquet", "is not Parquet"),
        Input(
            "plain.parquet",
            "parquet",
            "has no column 'lable'; did you mean 'label'",
            {**COLUMNS, "label": "lable"},
        ),
        *(Input(name, "arrow", MEANT) for name in ("plain.arrow", "file.arrow", "saved")),
        Input("splits/train", "arrow", MEANT),
        Input("splits", "arrow", r"holds several datasets \(test, train\)"),
        *(Input(name, "arrow", "is not Arrow") for name in ("not.arrow", "cut.arrow")),
        Input("", "hub", MEANT, {**COLUMNS, "hub": "{files}/splits", "train": "train", "test": ""}),
        Input(
            "",
            "hub",
            "has no split 'dev'; it has test, train",
            {**COLUMNS, "hub": "{files}/splits", "train": "dev"},
        ),
        Input("", "hub", MEANT, {**COLUMNS, "hub": "{files}/saved"}),
        Input("plain.xlsx", "excel", MEANT),
        Input("empty_sheets.xlsx", "excel", MEANT),
        Input("headerless.xlsx", "excel", MEANT, NUMBERS),
        Input("numbers.xlsx", "excel", [("a", "1"), ("b", "0"), ("c", "1"), ("d", "0")]),
        Input("gap.xlsx", "excel", "1 rows of 3 without a value in column 'label'.* row 3"),
        Input("two_sheets.xlsx", "excel", r"has rows on 2 sheets \(A, B\)"),
        Input("twice.xlsx", "excel", "names the column 'text' twice"),
        Input("no_rows.xlsx", "excel", "holds no rows"),
        Input("not.xlsx", "excel", "is no spreadsheet that can be read"),
        Input("cut.xlsx", "excel", "is no spreadsheet that can be read"),
    ]


def _texts() -> list[Input]:
    clients = {**COLUMNS, "classes": ["pos", "neg"]}
    return [
        Input(
            "lines.txt",
            "text",
            [("The first line.", ""), ("The second one.", ""), ("And a third, of five.", "")],
            LINES,
        ),
        Input(
            "lines.txt",
            "text",
            [("The first line.", ""), ("The second one.", ""), ("And a third, of five.", "")],
            {**LINES, "text": "text"},
        ),
        Input(
            "lines.txt.gz", "text", [("One line.", ""), ("Another.", ""), ("And one.", "")], LINES
        ),
        Input("lines.txt", "text", "has no column 'label'", {"label": "label"}),
        Input("empty.txt", "text", "holds no rows", LINES),
        Input("clients", "clients", (*MEANT, *MEANT, *MEANT), clients),
        Input(
            "clients_twice", "clients", "bank.csv and bank.csv.gz .* name the same client", clients
        ),
        Input("clients_none", "clients", "holds no client files", clients),
        Input(
            "clients_text",
            "clients",
            [
                (f"{n}.", "")
                for n in ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
            ],
            {"task": "causal", "text": "text"},
        ),
    ]


def _odd() -> list[Input]:
    """Return what a data check says of rows that can be read."""
    missing = {
        "na": "N/A",
        "none": "None",
        "nan": "nan",
        "null": "NULL",
        "dash": "-",
        "question": "?",
    }
    apart = "labels differ in case, blanks or Unicode form only"
    beside = {**COLUMNS, "test": "{files}/test_overlaps.csv"}
    return [
        Input("labels_case.csv", "csv", "", odd=rf"{apart}.*'Pos' \(3 rows\) and 'pos'"),
        *(
            Input(f"labels_{kind}.csv", "csv", "", odd=apart)
            for kind in ("blanks", "unicode", "wide")
        ),
        *(
            Input(
                f"labels_{kind}.csv",
                "csv",
                "",
                odd=rf"the label '{re.escape(label)}' .* missing value",
            )
            for kind, label in missing.items()
        ),
        Input("labels_few.csv", "csv", "", odd="1 classes have fewer than 5 training rows: rare"),
        Input("labels_ids.csv", "csv", "all 12 rows have labels of their own .*data.label"),
        Input("labels_scores.csv", "csv", "all 12 rows have labels of their own"),
        Input("labels_one.csv", "csv", "needs two classes or more, got .'pos'.|one class"),
        Input("texts_same.csv", "csv", "all .* training rows have the same text, 'the same'"),
        Input("texts_repeated.csv", "csv", "", odd="test texts .* occur in training as well"),
        Input("train.csv", "csv", "", beside, odd=r"4 of 8 test texts \(50 %\) occur in training"),
        Input("train.csv", "csv", "", {**COLUMNS, "test": "{files}/test_one_row.csv"}),
        Input(
            "train.csv",
            "csv",
            "test_none.csv does not exist",
            {**COLUMNS, "test": "{files}/test_none.csv"},
        ),
        Input(
            "train.csv",
            "csv",
            "the label 'maybe'",
            {**COLUMNS, "test": "{files}/test_new_label.csv"},
        ),
        Input(
            "train.csv",
            "csv",
            "",
            {**COLUMNS, "test": "{files}/test_new_label.csv", "classes": ["pos", "neg", "maybe"]},
        ),
        Input(
            "train.csv",
            "csv",
            "not in data.classes; did you mean 'negative'|not in data.classes",
            {**COLUMNS, "classes": ["pos", "negative"]},
        ),
        Input(
            "train.csv", "csv", "names a label twice", {**COLUMNS, "classes": ["pos", "neg", "pos"]}
        ),
        Input(
            "train.csv",
            "csv",
            "",
            {**COLUMNS, "public": "{files}/public_same.csv", "public_count": 6},
            odd="[3-6] of 6 public texts .* occur in training",
        ),
        Input(
            "train.csv",
            "csv",
            "",
            {**COLUMNS, "public": "{files}/public_large.csv", "public_count": 20},
            odd="public",
        ),
        Input(
            "train.csv",
            "csv",
            "holds 6 rows and data.public_count asks for 9",
            {**COLUMNS, "public": "{files}/public_same.csv", "public_count": 9},
        ),
        Input("train.csv", "csv", "", odd="batch", job={"clients.count": 6}),
        Input(
            "responses_same.csv",
            "csv",
            "",
            {"task": "causal", "prompt": "prompt", "response": "response"},
            odd="have the same response, 'yes'",
        ),
        Input("owners.csv", "csv", "", job={"clients.partition": "natural", "clients.by": "owner"}),
        Input(
            "owners.csv",
            "csv",
            "has no column 'onwer'; did you mean 'owner'",
            job={"clients.partition": "natural", "clients.by": "onwer"},
        ),
        Input(
            "owners_missing.csv",
            "csv",
            "without a value in column 'owner', the first is row 5",
            job={"clients.partition": "natural", "clients.by": "owner"},
        ),
    ]


def _columns() -> list[Input]:
    """Return templates and columns by name."""
    asked = {"task": "causal", "prompt": "instruction", "response": "output"}
    whole = {**asked, "template": "{prompt}\n{input}\n=> {response}"}
    return [
        Input(
            "alpaca.csv", "csv", [(f"Say {i}\nin {i}\n=> ", f"out {i}") for i in range(12)], whole
        ),
        Input("alpaca.csv", "csv", [(f"Say {i}", f"out {i}") for i in range(12)], asked),
        Input(
            "alpaca.csv",
            "csv",
            [(f"Say {i}\nin {i}", f"out {i}") for i in range(12)],
            {**asked, "prompt": ["instruction", "input"]},
        ),
        Input(
            "alpaca.csv",
            "csv",
            "has no column 'inptu'; did you mean 'input'",
            {**whole, "template": "{prompt} {inptu} {response}"},
        ),
        Input("alpaca_no_input.csv", "csv", "has no column 'input'", whole),
        Input(
            "alpaca.csv",
            "csv",
            [(f"Say {i}", f"out {i}") for i in range(12)],
            {**whole, "template": "{prompt} {{input}} {response}"},
        ),
        Input(
            "alpaca.csv", "csv", "data.template must be", {**whole, "template": "{prompt} {input}"}
        ),
        Input(
            "alpaca.csv",
            "csv",
            "data.template must be",
            {**whole, "template": "{response} {prompt}"},
        ),
        Input(
            "alpaca.csv",
            "csv",
            "data.template is given and is not read",
            {"task": "causal", "text": "output", "template": "{prompt}{response}"},
        ),
        Input("alpaca.csv", "csv", "go together", {"task": "causal", "prompt": "instruction"}),
        Input(
            "titles.csv",
            "csv",
            [(f"title {i}\nbody {i}", ("pos", "neg")[i % 2]) for i in range(12)],
            {**COLUMNS, "text": ["title", "body"]},
        ),
        Input(
            "titles.csv",
            "csv",
            "has no column 'boddy'; did you mean 'body'",
            {**COLUMNS, "text": ["title", "boddy"]},
        ),
        Input("titles.csv", "csv", "must name columns for a classify task", {"text": "title"}),
        Input(
            "titles.csv",
            "csv",
            "data.prompt is given and is not read",
            {**COLUMNS, "text": "title", "prompt": "body"},
        ),
    ]


BODY = """
[model]
path = '{model}'
[data]
source = "csv"
train = {train}
text = "text"
label = "label"
[clients]
count = 1
[logits]
public = 0
"""


def _jobs() -> list[Input]:
    """Return job files themselves."""

    def job(train: str, says: Rows | str, *, lead: str = "", tail: str = "") -> Input:
        return Input("", "csv", says, toml=lead + BODY.replace("{train}", train) + tail)

    here = "'{files}/plain.csv'"
    single = "put a Windows path in single quotes"
    return [
        job(here, MEANT),
        job(here, MEANT, lead="\ufeff"),
        job(here, MEANT, lead="\ufeff# saved by an editor\r\n"),
        Input("", "csv", "is not UTF-8 text .* save it as UTF-8", toml=BODY.encode("utf-16")),
        Input("", "csv", "is not UTF-8 text", toml="# caf\u00e9\n".encode("latin-1")),
        job(r'"C:\Users\ann\train.csv"', f"is not valid TOML: .*{single}"),
        job(r'"C:\data\train.csv"', f"is not valid TOML: .*{single}"),
        job(r'"D:\x\train.csv"', f"is not valid TOML: .*{single}"),
        job(r'"\\server\share\train.csv"', f"is not valid TOML: .*{single}"),
        job(r'"data\train.csv"', f"holds control characters: .*{single}"),
        job(r'"C:\new\table.csv"', f"holds control characters: .*{single}"),
        job(r"'C:\data\train.csv'", "does not exist"),
        job("train.csv", "is not valid TOML"),
        job("''", "data.train must name a file"),
        Input("", "csv", "unknown key 'dta'; did you mean 'data'", toml="[dta]\nsource = 'csv'\n"),
        job(here, "unknown key 'train.epoch'; did you mean 'epochs'", tail="[train]\nepoch = 2\n"),
        job(here, "train.lr", tail="[train]\nlr = -1\n"),
        job(here, "rounds", lead="rounds = 0\n"),
        job(here, "mode", lead="mode = 'param'\n"),
        Input("", "csv", "data.source", toml=BODY.replace("csv", "xml").replace("{train}", "'x'")),
    ]


def _models() -> list[Input]:
    """Return base models as people have them."""
    written = {"task": "causal", "text": "text"}

    def base(name: str, says: str, data: Mapping[str, object] = COLUMNS) -> Input:
        return Input("train.csv", "csv", says, data, model=name)

    return [
        base("{files}/models/holds_adapter", "also holds an adapter .*adapter.start"),
        base("{files}/models/no_config", "has no config.json"),
        base("{files}/models/config_cut", "config.json cannot be read"),
        base("{files}/models/config_list", "config.json cannot be read"),
        base("{files}/models/no_type", "model_type"),
        base("{files}/models/unknown_type", "llama9"),
        base("{files}/models/encoder_decoder", "t5"),
        base("{files}/models/own_code", "code"),
        base("{files}/models/quantised", "gptq"),
        base("{files}/models/quantised_bnb", "bitsandbytes"),
        base("{files}/models/bin", "a format that can run code .* save_pretrained"),
        base("{files}/models/gguf", "gguf"),
        base("{files}/models/no_weights", "weights|safetensors"),
        base("{files}/models/shard_missing", "model-00002-of-00002.safetensors"),
        base("{files}/models/cut", "cut|truncated|end"),
        base("{files}/models/encoder_for_text", "bert", written),
        base("{files}/models/nowhere", "nowhere"),
        base("{files}/plain.csv", "plain.csv"),
        base("C:\new\table", "holds control characters: .*single quotes"),
        base("smollm2-135n", "did you mean 'smollm2-135m'"),
    ]


INPUTS: list[Input] = [
    *_csv(),
    *_encodings(),
    *_json(),
    *_columnar(),
    *_texts(),
    *_odd(),
    *_columns(),
    *_jobs(),
    *_models(),
]
