"""Between organisations training starts from an adapter that the server has; no site opens one."""

# ruff: noqa: ANN401 - results are JSON

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triskel.config.job import unfederated
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run
from triskel.export import start

sites = runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py"))
Meeting, house = sites["Meeting"], sites["house"]
MODES = ("params", "split")
KEYS = {"rounds": "1", "adapter.start": '"before"'}


def watch(_event: Any) -> None:
    """Take note of nothing."""


@pytest.fixture
def there(tmp_path: Path) -> Any:
    """A house whose server has an adapter of each mode, and so has one process."""
    found = house(tmp_path, **KEYS)
    plain = found.local
    plain = plain.model_copy(update={"adapter": plain.adapter.model_copy(update={"start": ""})})
    run(plain, Request(modes=MODES, baselines=()), tmp_path / "before", LocalEngine(plain), watch)
    adapters = tmp_path / "server" / "local" / "adapters"
    adapters.mkdir()
    (adapters / "before").symlink_to(tmp_path / "before")
    return found


def test_sites_go_on_from_the_servers_adapter_as_one_process_does(there: Any) -> None:
    assert Meeting(there, there.spec(*MODES)).play() == {"done": True, "refused": False}
    one = there.local
    run(one, Request(modes=MODES, baselines=()), there.root / "local", LocalEngine(one), watch)
    result = json.loads((there.root / "out" / "result.json").read_text())
    for mode in MODES:
        ours, theirs, first = (
            load_file(there.root / place / "adapters" / mode / "adapter_model.safetensors")
            for place in ("out", "local", "before")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert any(not torch.equal(ours[name], first[name]) for name in first)
        assert result["modes"][mode]["start"]["name"] == f"before/{mode}"
    assert not list((there.root / "out").glob("start/**/*.safetensors"))
    assert not [p for s in sites["SITES"] for p in (there.root / s).rglob("start*")]


@pytest.mark.parametrize("how", ["path", "missing", "logits"])
def test_what_the_server_does_not_have_or_sites_would_need_is_refused(
    how: str, there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(start, "kind_of", opened.append)
    named = {"path": str(there.root / "before"), "missing": "another", "logits": "before"}[how]
    there.text = there.text.replace('start = "before"', f'start = "{named}"')
    modes = ("logits",) if how == "logits" else ("params",)
    ended = Meeting(there, there.spec(*modes)).play()
    assert ended["refused"]
    said = {
        "path": "the server refuses: adapter.start must be the name of an adapter that the server",
        "missing": "adapter.start 'another' is no adapter of this server; it has those in",
        "logits": "the server refuses: adapter.start works with modes that send every site the",
    }[how]
    assert ended["error"].startswith(said)
    assert str(there.root) not in ended["error"].replace(named, "")
    assert not opened


def test_an_adapter_that_does_not_fit_is_refused_without_a_path_of_the_server(there: Any) -> None:
    place = there.root / "before" / "adapters" / "params" / "adapter_config.json"
    told = json.loads(place.read_text())
    place.write_text(json.dumps({**told, "r": 7}))
    ended = Meeting(there, there.spec("params")).play()
    assert ended["refused"]
    assert ended["error"].startswith("adapter.start before/params has rank 7, and adapter.rank is")
    shutil.rmtree(there.root / "before" / "adapters")
    ended = Meeting(there, there.spec("params", run="00" * 6)).play()
    assert ended["error"].startswith("adapter.start before has no adapter that is everybody's")
    assert str(there.root) not in ended["error"]


def test_a_job_whose_sites_would_need_the_adapter_is_not_sent(there: Any) -> None:
    assert unfederated(there.job, "params") is unfederated(there.job, "split") is None
    assert "in logits a site has a model of its own" in str(unfederated(there.job, "logits"))
    assert "no path of a job is opened" in str(unfederated(there.local, "params"))
