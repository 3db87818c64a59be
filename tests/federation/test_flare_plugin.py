"""A mode of another package goes through a federation of three sites on real FLARE processes."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from triskel.federation import job_watch

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")
HERE = Path(__file__).parents[1]
flares = runpy.run_path(str(HERE / "helpers" / "flares.py"))
law = SimpleNamespace(**runpy.run_path(str(HERE / "laws" / "test_fourth_mode_sites.py")))
pytestmark = flares["MARKS"]


def test_sites_of_another_packages_mode_end_with_the_adapters_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = law.plugins.install("own_mode", tmp_path)
    for pause in ("POLL_S", "SILENT_S"):  # the job is short
        monkeypatch.setattr(job_watch, pause, 0.2)
    with (
        law.plugins.beside(package, "own_mode"),
        flares["federation"](tmp_path / "f", started=False, packages=[package]) as there,
    ):
        law.allow(there.house, law.PINNED)
        there.start()
        assert there.run("sign") == ""
        law.compared.same(there.house, ("sign",), law.compared.result(there.house), law.more)
    house = there.house
    assert json.loads((house.root / "out" / "ended.json").read_text())["done"]
    page = (house.root / "out" / "report.html").read_text(encoding="utf-8")
    assert "for each trained number, whether it grew" in page
