"""Files that others wrote, damaged in thousands of ways, are read or refused in a sentence."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCHMARKS))
    fuzz = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "fuzz.py")))
KINDS = list(fuzz.kinds())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_read_or_refused_by_name_and_touches_nothing_else(
    kind: "fuzz.Kind", tmp_path: Path
) -> None:
    outcomes, findings = fuzz.tried(kind, 501, 11, tmp_path)
    assert findings == []
    assert sum(outcomes.values()) == 501
    assert outcomes["refused"] or kind.name == "events", "some damage is seen"


def test_a_valid_file_of_each_kind_is_read(tmp_path: Path) -> None:
    """Else the fuzz would try nothing but refusals; three kinds hold stand-ins."""
    for kind in KINDS:
        if kind.name in {"approval", "packed kit", "records", "run folder: job",
                         "run folder: request"}:  # fmt: skip
            continue
        for name, data in kind.files.items():
            (tmp_path / kind.name / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind.name / name).write_bytes(data)
        kind.read(tmp_path / kind.name)


def test_all_of_it_takes_little_memory() -> None:
    assert fuzz.fuzzed(150, 3)["peak_mb"] < 200
