"""A node with filters of FLARE's own is not started unless its site knows that none applies."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from triskel.errors import JobError, TriskelError
from triskel.federation import kits, nodes
from triskel.federation.filters import refuse, unseen

FILTER = {"path": "nvflare.app_common.filters.percentile_privacy.PercentilePrivacy", "args": {}}


@pytest.fixture
def made(central_kits: Path) -> Path:
    return central_kits


@pytest.fixture
def bank(made: Path, tmp_path: Path) -> kits.Kit:
    copy = Path(shutil.copytree(made, tmp_path / "f"))
    return next(one for one in kits.kits_in(copy) if one.name == "bank")


def write(kit: kits.Kit, name: str, value: dict[str, Any]) -> None:
    file = kit.local / name
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | value))


WITH = {
    "a scope with result filters": (
        "privacy.json", {"scopes": [{"name": "public", "task_result_filters": [FILTER]}]},
    ),
    "a scope with data filters": (
        "privacy.json", {"scopes": [{"name": "private", "task_data_filters": [FILTER]}]},
    ),
    "filters of the node": ("resources.json", {"task_result_filters": [{"filters": [FILTER]}]}),
    "a component": (
        "resources.json", {"extra": [{"id": "x", "path": "hospital.privacy.NoNamesFilter"}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH)
def test_a_node_with_such_filters_is_not_started_until_its_policy_says_it_knows(
    name: str, bank: kits.Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, value = WITH[name]
    write(bank, file, value)
    monkeypatch.setattr(nodes, "weakness", lambda _kit: None)  # what is tried here comes after it
    with pytest.raises(JobError, match=r"bank is not started: .*filters_do_not_apply = true"):
        nodes.start(bank)
    assert not (bank.path / "node.pid").exists()
    policy = bank.local / "policy.toml"
    old = "filters_do_not_apply = false"
    assert old in policy.read_text()
    policy.write_text(policy.read_text().replace(old, "filters_do_not_apply = true"))
    refuse(bank)


def test_a_kit_as_it_is_made_and_empty_rules_start(bank: kits.Kit) -> None:
    assert unseen(bank) is None
    write(bank, "privacy.json", {"scopes": [{"name": "a", "task_result_filters": []}]})
    assert unseen(bank) is None


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 9999])
def test_rules_that_cannot_be_read_start_nothing(text: str, bank: kits.Kit) -> None:
    (bank.local / "privacy.json").write_text(text)
    with pytest.raises(TriskelError, match=r"privacy\.json"):
        refuse(bank)
