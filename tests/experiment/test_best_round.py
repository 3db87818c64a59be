"""`train.keep = "best"`: a stage ends with the round that is best on validation texts."""

# ruff: noqa: ANN401 - results are JSON

import html
import json
import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triskel.config.job import Job
from triskel.config.read import parse
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, JobError
from triskel.experiment.best_round import best_of
from triskel.experiment.compare import Request, run
from triskel.experiment.reevaluate import assess
from triskel.experiment.rounds import Outcome, Scores, Stage, play, summary
from triskel.experiment.stages import stage_of
from triskel.export.manifest import read_manifest
from triskel.federation.job_folder import unfit
from triskel.numerics.metrics import Score
from triskel.report.page import render
from triskel.report.tables import markdown

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
ROUNDS = 4
LOADED: dict[Path, Any] = {}
EVERY = Request(modes=("params", "logits", "split"), baselines=("local", "central"))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("best")
    small.save_model(folder / "model")
    small.save_rows(folder / "rows.csv", 60)
    return folder


def job(room: Path, **more: Any) -> Job:
    """So high a learning rate that rounds go up and down."""
    given: dict[str, Any] = {
        "rounds": ROUNDS,
        "data": {"validation_share": 0.3},
        "train": {"lr": 0.3, "keep": "best"},
    }
    for name, section in more.items():
        given[name] = {**given[name], **section} if isinstance(section, dict) else section
    found: Job = small.job(room / "model", room / "rows.csv", **given)
    return found


def played(one: Job, request: Request, folder: Path) -> dict[str, Any]:
    run(one, request, folder, LocalEngine(one), small.watch)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def whole(room: Path) -> dict[str, Any]:
    return played(job(room), EVERY, room / "whole")


def stages(result: Mapping[str, Any]) -> dict[str, Any]:
    central = result["baselines"].get("central")
    return {**result["modes"], **({"central": central} if central else {})}


def adapters(folder: Path, stage: str) -> dict[str, dict[str, torch.Tensor]]:
    places = [p for p in (folder / "adapters").iterdir() if p.name.partition("-")[0] == stage]
    return {p.name: load_file(p / "adapter_model.safetensors") for p in places}


def test_each_stage_ends_with_the_first_of_its_best_rounds(
    whole: dict[str, Any], room: Path
) -> None:
    for stage, found in stages(whole).items():
        marks = [one["validation"]["accuracy"] for one in found["rounds"]]
        assert found["kept"] == 1 + marks.index(max(marks))
        kept = found["rounds"][found["kept"] - 1]
        assert {k: found["final"][k] for k in ("accuracy", "loss", "own")} == {
            k: kept[k] for k in ("accuracy", "loss", "own")
        }
        again = assess(room / "whole", mode=stage, judge="validation", watch=small.watch)
        assert again["accuracy"] == max(marks)
        tested = assess(room / "whole", mode=stage, watch=small.watch)
        assert tested["accuracy"] == kept["accuracy"]
        assert found["final"]["everybody"] == tested["everybody"]
    assert any(one["kept"] < ROUNDS for one in stages(whole).values())
    alone = whole["baselines"]["local"]["per_client"]
    assert any(one["kept"] < ROUNDS for one in alone.values())
    again = assess(room / "whole", mode="local", watch=small.watch)["per_client"]
    for client, found in alone.items():
        assert {k: found[k] for k in again[client]} == again[client]


def test_what_is_kept_is_what_a_run_of_so_many_rounds_ends_with(
    whole: dict[str, Any], room: Path, tmp_path: Path
) -> None:
    for stage, found in stages(whole).items():
        modes, beside = ((), ("central",)) if stage == "central" else ((stage,), ())
        shorter = job(room, rounds=found["kept"], train={"keep": "last"})
        other = played(shorter, Request(modes=modes, baselines=beside), tmp_path / stage)
        one, two = adapters(room / "whole", stage), adapters(tmp_path / stage, stage)
        assert one.keys() == two.keys()
        for name, tensors in two.items():
            assert all(torch.equal(one[name][key], tensors[key]) for key in tensors), name
        assert stages(other)[stage]["final"] == found["final"]
        assert "kept" not in stages(other)[stage]


def test_table_page_and_model_card_say_which_round_was_kept(
    whole: dict[str, Any], room: Path
) -> None:
    told = "; ".join(
        f"{name} {stages(whole)[name.replace('centralised', 'central')]['kept']} of {ROUNDS}"
        for name in ("centralised", "params", "logits", "split")
    )
    said = f"Kept: the round that is best on validation texts: {told}."
    assert said in markdown(whole)
    assert said in re.sub(r"<[^>]*>", "", html.unescape(render(whole))).replace("\xa0", " ")
    params = room / "whole" / "adapters" / "params"
    training = read_manifest(params).training
    assert training is not None
    assert training.kept == whole["modes"]["params"]["kept"]
    card = (params / "README.md").read_text(encoding="utf-8")
    assert f"what round {training.kept} left, the best on validation texts" in card


def test_of_settings_compared_on_validation_texts_the_same_round_is_kept(
    whole: dict[str, Any], room: Path, tmp_path: Path
) -> None:
    request = Request(modes=("params",), baselines=(), judge="validation")
    found = played(job(room), request, tmp_path / "run")["modes"]["params"]
    mine = whole["modes"]["params"]
    assert found["kept"] == mine["kept"]
    assert found["final"]["accuracy"] == mine["rounds"][mine["kept"] - 1]["validation"]["accuracy"]


# --- a stage whose validation figures are given -----------------------------------------------


def given(figures: Sequence[float | None]) -> Any:
    """Score whatever comes with these figures, one after the other."""
    left = list(figures)

    def validate(_state: Any, _clients: Any) -> Scores:
        value = left.pop(0)
        right = 0 if value is None else round(100 * value)
        one = Score(
            confusion=None,
            loss_sum=1.0,
            correct=right,
            count=0 if value is None else 100,
            classes=3,
        )
        return Scores(pooled=one, own=one, each={})

    return validate


def stage(room: Path, mode: str, figures: Sequence[float | None], **more: Any) -> Stage[Any, Any]:
    asked = job(room, **more)
    known = LOADED.get(room) or small.resources(asked)
    LOADED[room] = known  # the model is loaded once
    resources = replace(known, job=asked)
    return replace(stage_of(mode, resources, small.watch), validate=given(figures))


def killing(round_: int) -> Any:
    def kill(event: Mapping[str, Any]) -> None:
        if event.get("event") == "round_start" and event["round"] == round_:
            raise KeyboardInterrupt

    return kill


def ended(outcome: Outcome[Any], one: Stage[Any, Any]) -> list[Mapping[str, torch.Tensor]]:
    models = [one.mode.server_model(outcome.state)]
    models += [one.mode.client_model(outcome.clients[c]) for c in outcome.clients]
    return [m for m in models if m is not None]


def same(left: list[Mapping[str, torch.Tensor]], right: list[Mapping[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a[name], b[name]) for a, b in zip(left, right, strict=True) for name in b
    )


@pytest.mark.parametrize("mode", ["params", "logits", "split"])
def test_clients_own_models_are_of_the_round_that_is_kept(
    mode: str, room: Path, tmp_path: Path
) -> None:
    one = stage(room, mode, [0.1, 0.9, 0.9, 0.2])
    outcome = play(one, LocalEngine(one.job), folder=tmp_path / "a", watch=small.watch)
    assert outcome.kept == summary(outcome)["kept"] == 2
    assert len(outcome.rows) == ROUNDS
    two = stage(room, mode, [], rounds=2, train={"keep": "last"})
    shorter = play(two, LocalEngine(two.job), folder=tmp_path / "b", watch=small.watch)
    assert same(ended(outcome, one), ended(shorter, two))
    assert len(ended(outcome, one)) == (4 if mode == "logits" else 1)


def test_a_run_that_was_killed_after_its_best_round_still_ends_with_it(
    room: Path, tmp_path: Path
) -> None:
    figures = [0.1, 0.9, 0.3, 0.2]
    one = stage(room, "logits", figures)
    straight = play(one, LocalEngine(one.job), folder=tmp_path / "a", watch=small.watch)

    for killed, left in ((3, figures), (4, figures[2:])):
        now = stage(room, "logits", left)
        with pytest.raises(KeyboardInterrupt):
            play(now, LocalEngine(now.job), folder=tmp_path / "b", watch=killing(killed))
    last = stage(room, "logits", figures[3:])
    again = play(last, LocalEngine(last.job), folder=tmp_path / "b", watch=small.watch)
    assert again.kept == 2
    assert same(ended(again, last), ended(straight, one))


def test_a_kill_before_the_best_round_was_put_aside_costs_nothing(
    room: Path, tmp_path: Path
) -> None:
    two = stage(room, "logits", [0.1, 0.9], rounds=2)
    play(two, LocalEngine(two.job), folder=tmp_path, watch=small.watch)
    (tmp_path / "best" / "round-000002.safetensors").unlink()
    rest = stage(room, "logits", [0.3, 0.2])
    outcome = play(rest, LocalEngine(rest.job), folder=tmp_path, watch=small.watch)
    assert outcome.kept == 2
    assert len(ended(outcome, rest)) == 4  # states of that round are all there


def test_a_best_round_that_is_gone_is_said(room: Path, tmp_path: Path) -> None:
    three = stage(room, "params", [0.1, 0.9, 0.2], rounds=3)
    play(three, LocalEngine(three.job), folder=tmp_path, watch=small.watch)
    (tmp_path / "best" / "round-000002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="does not hold what round 2 left; delete"):
        play(three, LocalEngine(three.job), folder=tmp_path, watch=small.watch)
    (tmp_path / "best" / "round-000001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is gone, and round 2 was the best"):
        play(three, LocalEngine(three.job), folder=tmp_path, watch=small.watch)


def test_where_no_round_was_scored_the_last_is_kept(room: Path, tmp_path: Path) -> None:
    one = stage(room, "params", [None, None], rounds=2)
    outcome = play(one, LocalEngine(one.job), folder=tmp_path, watch=small.watch)
    assert outcome.kept == 2


def test_of_many_clients_the_round_that_is_kept_tells_what_each_reached(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triskel.experiment.rounds.EACH", 2)
    one = stage(room, "params", [0.1, 0.9, 0.2, 0.3])
    outcome = play(one, LocalEngine(one.job), folder=tmp_path, watch=small.watch)
    assert [row["round"] for row in outcome.rows if "per_client" in row] == [2, 4]


# --- which round is best ----------------------------------------------------------------------


def rows(figure: str, *values: float | None) -> list[Any]:
    found: list[Any] = []
    for number, value in enumerate(values, 1):
        told = {"accuracy": value, figure: value, "n": 0 if value is None else 5}
        found.append({"round": number, "validation": told})
    return found


@pytest.mark.parametrize(
    ("figure", "values", "best"),
    [
        ("accuracy", (0.2, 0.7, 0.7, 0.1), 2),
        ("perplexity", (9.0, 3.0, 3.0, 4.0), 2),
        ("perplexity", (float("nan"), float("inf"), 8.0), 3),
        ("accuracy", (None, 0.0), 2),
        ("accuracy", (None, None), None),
        ("accuracy", (), None),
    ],
)  # fmt: skip
def test_the_best_round_is_the_first_of_the_best_finite_figures(
    figure: Any, values: tuple[float | None, ...], best: int | None
) -> None:
    assert best_of(rows(figure, *values), figure) == best


def test_a_figure_over_nothing_and_a_round_without_one_are_never_best() -> None:
    told = {"round": 1, "validation": {"accuracy": 1.0, "n": 0}}
    assert best_of([told, {"round": 2}], "accuracy") is None  # type: ignore[typeddict-item]


# --- where nothing can be chosen --------------------------------------------------------------


def test_without_validation_rows_the_best_round_is_refused_when_the_job_is_read() -> None:
    with pytest.raises(JobError) as caught:
        parse('[train]\nkeep = "best"')
    assert str(caught.value) == (
        'job: train.keep "best" needs rows to choose a round by: set data.validation_share, to '
        "0.2 for one"
    )


def test_between_organisations_the_best_round_is_refused() -> None:
    text = """
    [data]
    source = "clients"
    train = "tickets"
    text = "text"
    label = "label"
    classes = ["no", "yes"]
    public_count = 0
    validation_share = 0.2
    [train]
    keep = "best"
    """
    assert unfit(parse(text)) == (
        'train.keep must be "last": sites score models on their test rows, so no validation '
        "figure reaches the server"
    )
    assert unfit(parse(text, overrides=["train.keep=last"])) is None
