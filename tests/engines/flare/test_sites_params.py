"""Parameter exchange of every family between three sites is that of one process, to the bit."""

import runpy
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sites = runpy.run_path(str(HERE.parents[1] / "helpers" / "sites.py"))
plain = runpy.run_path(str(HERE / "test_sites.py"))
Meeting = sites["Meeting"]
FAMILIES: dict[str, dict[str, str]] = {
    "a core": {"params.trains": '"fedsb"'},
    "by turns, some away": {"params.trains": '"rolora"', "clients.cohort": "0.6"},
    "a factor of its own": {"params.trains": '"fedsa"'},
    "a head of its own": {"params.head": '"local"'},
    "control variates": {"params.local": '"scaffold"'},
    "common moments": {"params.local": '"fedadamw"'},
    "a model of its own": {"params.local": '"ditto"'},
    "fine-tuned at the end": {"params.local": '"finetune"'},
    "moments kept": {"params.moments": '"kept"', "params.server_optimizer": '"nesterov"'},
    "side factors": {"params.aggregate": '"fedex"'},
    "redistributed": {"params.aggregate": '"flexlora"', "clients.each.bank.rank": "1"},
    "a median": {"params.aggregate": '"median"'},
    "by size": {"clients.sampling": '"size"', "clients.cohort": "0.6"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_end_as_one_process(tmp_path: Path, family: str) -> None:
    there: Any = sites["house"](tmp_path, rounds="3", **FAMILIES[family])
    for place in tmp_path.glob("*/local/policy.toml"):  # draws by size may be of one client
        place.write_text(place.read_text().replace("cohort = 2", "cohort = 1"))
    assert Meeting(there, there.spec("params")).play()["done"]
    ours = plain["result"](there)
    plain["same"](there, ("params",), ours)
