"""A job between a server and sites gives what one process gives, to the last bit."""

# ruff: noqa: ANN401 - results are JSON
# Dropout is not here: threads of one process share a random stream, processes do not.

import json
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triskel.config.job import MODE_NAMES, ModeName
from triskel.core.result_file import dump, result_in
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run

sites = runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py"))
House, Meeting, house = sites["House"], sites["Meeting"], sites["house"]
SITES = sites["SITES"]


def alone(there: Any, modes: tuple[ModeName, ...]) -> dict[str, Any]:
    """The same job in one process."""
    job, place = there.local, there.root / "local"
    return run(job, Request(modes=modes, baselines=()), place, LocalEngine(job), lambda _: None)


def adapter(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "adapter_model.safetensors")


def adapters(there: Any, mode: str) -> dict[Path, Path]:
    """Where each adapter of one process is, and the one that the federation must have left."""
    found: dict[Path, Path] = {}
    for one in (there.root / "local" / "adapters").glob(f"{mode}*"):
        site = one.name.removeprefix(mode).removeprefix("-")
        if not site:
            found[one] = there.root / "out" / "adapters" / mode
        else:  # a model of its own never leaves a site
            (found[one],) = there.root.glob(f"{site}/triskel/runs/*/adapters/{one.name}")
    return found


def exactly(counted: int, sent: int) -> bool:
    """Whether links that add nothing counted what was sent."""
    return counted == sent


def same(
    there: Any, modes: tuple[ModeName, ...], ours: dict[str, Any],
    crossed: Callable[[int, int], bool] = exactly,
) -> None:  # fmt: skip
    """Hold a federation's run folder against a run in one process."""
    theirs = alone(there, modes)
    for mode in modes:
        places = adapters(there, mode)
        assert places
        for here, other_place in places.items():
            one, two = adapter(here), adapter(other_place)
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one), here.name
        each = ours["modes"][mode]["rounds"]
        for way in ("up", "down"):
            whole = sum(one["wire_bytes"][way] for one in each)
            assert ours["modes"][mode]["totals"][way]["wire_bytes"] == whole
        rounds = zip(ours["modes"][mode]["rounds"], theirs["modes"][mode]["rounds"], strict=True)
        for mine, other in rounds:
            assert "absent" not in mine
            for client, spent in other["clients"].items():
                for what in ("up", "down", "flops", "peak_client_bytes"):
                    assert mine["clients"][client][what] == spent[what], (mode, client, what)
            for way in ("up", "down"):  # what the links counted, evaluation left out
                sent = sum(one[way]["message_bytes"] for one in mine["clients"].values())
                assert crossed(mine["wire_bytes"][way], sent), (mode, way)
            assert mine["accuracy"] == other["accuracy"]
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)


def result(there: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((there.root / "out" / "result.json").read_text())
    assert dump(result_in(there.root / "out")) == json.dumps(found, indent=1), "to the byte"
    return found


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_sites_end_with_the_adapters_bytes_and_flops_of_one_process(
    tmp_path: Path, task: str
) -> None:
    there = house(tmp_path, task=task)
    assert Meeting(there, there.spec(*MODE_NAMES)).play() == {"done": True, "refused": False}
    same(there, MODE_NAMES, result(there))
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_what_tests_cost_is_what_the_links_carried_for_them(tmp_path: Path) -> None:
    there, carried = house(tmp_path), Counter[tuple[str, int, str]]()
    meeting = Meeting(there, there.spec(*MODE_NAMES))

    def count(up: Any, down: Any) -> None:
        stage, round_, what, _ = (up.get("play") or down.get("play") or "///").split("/")
        for way, told in (("up", up), ("down", down)):
            if what in {"probe", "student"}:
                crossed = sum(len(x) for x in told.values() if type(x) is bytes)
                carried[stage, int(round_), way] += crossed

    meeting._count = count
    assert meeting.play()["done"]
    ours = result(there)["modes"]
    for mode in MODE_NAMES:
        for one in ours[mode]["rounds"]:
            for way in ("up", "down"):
                counted = one["scoring"][way]["message_bytes"]
                assert counted == carried[mode, one["round"], way] > 0
        for way in ("up", "down"):
            whole = sum(one["scoring"][way]["message_bytes"] for one in ours[mode]["rounds"])
            assert ours[mode]["totals"]["scoring"][way]["message_bytes"] == whole
    here = alone(there, MODE_NAMES)["modes"]
    assert not any("scoring" in one for m in here.values() for one in (m["totals"], *m["rounds"]))


def test_a_sites_log_speaks_of_no_round_that_is_not_played(tmp_path: Path) -> None:
    there = house(tmp_path)
    assert Meeting(there, there.spec(*MODE_NAMES)).play()["done"]
    lines = [
        json.loads(line)
        for line in (tmp_path / "bank" / "triskel" / "audit.jsonl").read_text().splitlines()
    ]
    left = [one for one in lines if one["what"] == "left"]
    for mode in MODE_NAMES:
        kinds = [(one["round"], one["kind"]) for one in left if one["stage"] == mode]
        assert {round_ for round_, _ in kinds} == {1, 2}
        for round_ in (1, 2):  # a round's test follows its update
            here = [kind for number, kind in kinds if number == round_]
            assert here.index("update") + 1 == here.index("evaluate")


@pytest.mark.parametrize(
    "more",
    [
        {"split.labels": '"shared"'},
        {"split.wave": "2"},
        {"wire.up": '"int8"'},
        {"params.server_momentum": "0.5"},
        {"clients.cohort": "0.5"},
        {"params.exchange": '{name = "fedkseed", seeds = 16, steps = 3, lr = 0.01}'},
        {"clients.cohort": "0.5", "params.exchange": '{name = "fedmezo", steps = 3, lr = 0.01}'},
    ],
    ids=lambda more: next(iter(more)),
)
def test_options_mean_the_same_between_sites(tmp_path: Path, more: dict[str, str]) -> None:
    mode: ModeName = "split" if "split" in next(iter(more)) else "params"
    there = house(tmp_path, **more)
    assert Meeting(there, there.spec(mode)).play()["done"]
    same(there, (mode,), result(there))


def test_hidden_states_that_sites_keep_are_those_of_one_process(tmp_path: Path) -> None:
    there = house(tmp_path, **{"adapter.blocks": '"top:1"', "split.cut": "[1, 2]"})
    sizes: dict[str, list[int]] = {}

    def look(name: str, method: str, _told: Any) -> str:
        if (here := meeting.sites[name]._admitted) and here.resources.body().prefix is not None:
            sizes.setdefault(method, []).append(here.resources.memory.hidden.size)
        return ""

    meeting = Meeting(there, there.spec(*MODE_NAMES), look)
    assert meeting.play()["done"]
    same(there, MODE_NAMES, result(there))
    assert max(sizes["collect"]) > 0
    assert {site._here.resources.memory.hidden.size for site in meeting.sites.values()} == {0}, (
        "stages are over"
    )


def test_a_run_that_goes_on_with_fewer_sites_than_it_began_with_says_so(tmp_path: Path) -> None:
    there = house(tmp_path)

    def lose(name: str, _method: str, told: Any) -> str:
        play = told.get("play") or told.get("order", {}).get("play", "")
        return "before" if name == "shop" and play.startswith("params/2/work") else ""

    assert Meeting(there, there.spec("params"), lose).play()["again"]
    ended = Meeting(there, there.spec("params"), sites=("bank", "clinic")).play()
    assert not ended["done"]
    assert ended["again"]
    assert "shop: did not answer" in ended["error"]
    assert Meeting(there, there.spec("params")).play()["done"]
    same(there, ("params",), result(there))


def test_what_was_said_before_the_rounds_is_not_shown_in_them(tmp_path: Path) -> None:
    there, seen = house(tmp_path, rounds="1"), list[dict[str, Any]]()

    def look(_name: str, method: str, _told: Any) -> str:
        if method == "collect":
            seen.append(meeting.host.status())
        return ""

    meeting = Meeting(there, there.spec("params"), look)
    assert meeting.host.status()["text"] == "asking the sites"
    assert meeting.play()["done"]
    assert {(one["round"], one["rounds"], one["text"]) for one in seen} == {(1, 1, "")}
    assert meeting.host.status()["text"] == "done"


def test_a_result_that_cannot_be_copied_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = house(tmp_path, rounds="1")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("triskel.engines.flare.server_job.copied", full)
    Meeting(there, there.spec("params")).play()
    ended = json.loads((tmp_path / "out" / "ended.json").read_text())
    assert not ended["done"]
    assert ended["error"] == "the result was not copied: No space left on device"


def test_a_site_whose_rows_changed_does_not_go_on_and_says_only_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """How they changed stands in its own log; the server keeps nothing of its rows."""
    there = house(tmp_path)

    def lose(name: str, _method: str, told: Any) -> str:
        play = told.get("play") or told.get("order", {}).get("play", "")
        return "before" if name == "shop" and play.startswith("params/2/work") else ""

    assert Meeting(there, there.spec("params"), lose).play()["again"]
    rows = tmp_path / "bank" / "reviews.csv"
    before = rows.read_text(encoding="utf-8")
    head, first, second, *rest = before.splitlines(keepends=True)
    rows.write_text("".join([head, second, first, *rest]), encoding="utf-8")
    caplog.clear()
    ended = Meeting(there, there.spec("params")).play()
    assert "the data of site 'bank' are not those that it began this run with" in ended["error"]
    assert not ended["done"]
    told = [one.getMessage() for one in caplog.records if one.name == "triskel.site"]
    assert any("the file of bank in reviews has" in line and "order" in line for line in told)
    kept = [*(tmp_path / "server").rglob("data.json"), *(tmp_path / "out").rglob("data.json")]
    assert kept
    for place in kept:
        record = json.loads(place.read_text(encoding="utf-8"))
        assert record["clients"] == {name: {} for name in SITES}
    rows.write_text(before, encoding="utf-8")
    assert Meeting(there, there.spec("params")).play()["done"]
    same(there, ("params",), result(there))


def test_what_is_odd_about_a_sites_rows_stands_in_its_own_log_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = house(tmp_path)
    assert Meeting(there, there.spec("params")).play()["done"]
    odd = "classes have fewer than 5 training rows"
    told = [one.getMessage() for one in caplog.records if one.name == "triskel.site"]
    assert any(odd in line for line in told)
    assert not any(line.startswith("data.public_count") for line in told)
    for place in (tmp_path / "server", tmp_path / "out"):
        texts = [file.read_bytes() for file in place.rglob("*") if file.is_file()]
        assert texts
        assert not any(odd.encode() in text for text in texts)
