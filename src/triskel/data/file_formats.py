"""What a data file is, by its name."""

from collections.abc import Mapping
from pathlib import Path

COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zip"})
"""Endings of archives with one file in it."""

FORMATS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".xlsx": "excel",
    ".xls": "excel",
    ".ods": "excel",
}
"""Format by file name; a JSON file may hold one array or one object a line."""

COLUMNAR = frozenset({"parquet", "arrow"})
"""Formats of which single columns are read."""
SAVED = "state.json"
"""Stands in a folder that `datasets` saved with `save_to_disk`."""
SPLITS = "dataset_dict.json"
"""Stands in a folder of several such folders."""


def format_of(path: Path) -> str | None:
    """Return what a file or folder says it is by its name; None where it does not.

    >>> format_of(Path("a.csv.gz")), format_of(Path("a.TSV")), format_of(Path("a"))
    ('csv', 'csv', None)
    """
    if (path / SAVED).is_file() or (path / SPLITS).is_file():
        return "arrow"
    ends = [end.lower() for end in path.suffixes[-2:]]
    if ends and ends[-1] in COMPRESSED:
        ends.pop()
    return FORMATS.get(ends[-1]) if ends else None


def stem_of(path: Path) -> str:
    """Return a file's name without what says its format, and the archive that it is in.

    >>> stem_of(Path("bank.test.csv.gz")), stem_of(Path("bank.jsonl"))
    ('bank.test', 'bank')
    """
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return inner.stem if inner.suffix.lower() in FORMATS else inner.name
