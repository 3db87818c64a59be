"""Rounds: who takes part, what is kept between them, and what a stopped stage goes on from."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from triskel.aggregate.mean import Mean
from triskel.config.job import Job
from triskel.config.sections import Evaluate
from triskel.engines.local import LocalEngine
from triskel.errors import RoundError, TrainingError
from triskel.experiment.checkpoint import read
from triskel.experiment.rounds import Scores, Stage, play, pooled, summary
from triskel.experiment.sampling import Sampling
from triskel.experiment.stages import stage_of
from triskel.model.shared import SharedModel
from triskel.modes.params.mode import Params
from triskel.numerics.metrics import Score
from triskel.types import ClientState
from triskel.wire.ledger import Ledger

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
NAMES = [f"client-{i:02d}" for i in range(1, 11)]


def job_of(share: float, seed: int = 0, rounds: int = 3) -> Job:
    return Job.model_validate({"seed": seed, "rounds": rounds, "clients": {"cohort": share}})


def cohort(job: Job, clients: Sequence[str], round_: int) -> list[str]:
    return Sampling(job, clients).cohort(round_)


# --- who takes part ---------------------------------------------------------------------------


@given(st.floats(0.001, 1.0), st.integers(1, 30), st.integers(1, 99), st.integers(0, 9))
def test_a_cohort_is_a_share_of_the_clients_rounded_up(
    share: float, count: int, round_: int, seed: int
) -> None:
    names = [f"c{i:02d}" for i in range(count)]
    found = cohort(job_of(share, seed), names, round_)
    assert found == sorted(set(found))
    assert set(found) <= set(names)
    assert 1 <= len(found) <= count
    assert share * count - 1e-6 <= len(found) < share * count + 1
    assert found == cohort(job_of(share, seed), list(reversed(names)), round_)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(1.0, 7, 7), (0.3, 10, 3), (0.1, 10, 1), (0.07, 100, 7), (0.29, 100, 29), (0.01, 10, 1),
     (0.5, 3, 2), (0.34, 3, 2), (0.33, 3, 1)],
)  # fmt: skip
def test_a_share_that_is_whole_stays_whole(share: float, count: int, expected: int) -> None:
    assert len(cohort(job_of(share), [f"c{i}" for i in range(count)], 1)) == expected


def test_cohorts_change_from_round_to_round_and_reach_everybody() -> None:
    drawn = [tuple(cohort(job_of(0.3), NAMES, r)) for r in range(1, 41)]
    assert len(set(drawn)) > 20
    counts = [sum(name in c for c in drawn) for name in NAMES]
    assert min(counts) >= 4
    assert max(counts) <= 22
    assert drawn != [tuple(cohort(job_of(0.3, seed=1), NAMES, r)) for r in range(1, 41)]


@given(st.floats(0.0, 0.99), st.integers(1, 30), st.integers(1, 99))
def test_a_share_of_a_cohort_drops_out_and_one_always_stays(
    share: float, count: int, round_: int
) -> None:
    names = [f"c{i:02d}" for i in range(count)]
    job = Job.model_validate({"clients": {"drop_share": share}})
    gone = Sampling(job, names).dropped(round_)
    assert set(gone) < set(names)
    assert len(gone) == min(round(share * count), count - 1)
    assert gone == Sampling(job, list(reversed(names))).dropped(round_)


@pytest.mark.parametrize("mode", ["params", "logits", "split"])
def test_a_round_with_drop_outs_is_the_round_of_those_who_stay(mode: str, tmp_path: Path) -> None:
    model = SMALL.save_model(tmp_path / "model")
    resources = SMALL.resources(SMALL.job(model, SMALL.save_rows(tmp_path / "rows.csv", 40)))
    stage, ledgers, ends = stage_of(mode, resources, SMALL.watch), [Ledger(), Ledger()], []
    stay, gone = ["client-01", "client-03"], ["client-02"]
    for ledger, cohort_, away in ((ledgers[0], resources.active(), gone), (ledgers[1], stay, [])):
        kept: dict[str, ClientState] = {}
        state = LocalEngine(resources.job).round(
            stage.mode, stage.mode.start(), cohort_,
            worker=lambda c: resources.worker(c, SMALL.watch), client_states={},
            keep=kept.__setitem__, ledger=ledger, watch=SMALL.watch, gone=away,
        )  # fmt: skip
        ends.append((stage.mode.server_model(state), kept))
    (one, mine), (other, theirs) = ends
    assert all(torch.equal(one[n], other[n]) for n in other)
    assert set(mine) == set(theirs) == set(stay)
    rows, plain = (ledger.rows() for ledger in ledgers)
    assert rows["client-02"]["up"]["messages"] == rows["client-02"]["flops"] == 0
    assert rows["client-02"]["down"]["messages"] == 1
    for client in stay:
        assert {k: v for k, v in rows[client].items() if k != "compute_s"} == {
            k: v for k, v in plain[client].items() if k != "compute_s"
        }
    assert ledgers[0].absent == {"client-02": "it dropped out, as clients.drop_share has it"}


def drawn(sampling: str, share: float, sizes: Mapping[str, int], rounds: int = 4000) -> Any:
    """How often each client was drawn, round by round."""
    clients = {"cohort": share, "sampling": sampling}
    who = Sampling(Job.model_validate({"clients": clients}), list(sizes), lambda: sizes)
    return [who.times(r) for r in range(1, rounds + 1)], who


def test_by_size_clients_are_drawn_as_their_texts_are_and_count_as_often_as_they_were_drawn() -> (
    None
):
    sizes = {"a": 10, "b": 30, "c": 60, "none": 0}
    rounds, who = drawn("size", 0.5, sizes)
    for times in rounds:
        assert sum(times.values()) == 2
    for name, size in sizes.items():
        often = sum(times.get(name, 0) for times in rounds) / (2 * len(rounds))
        assert abs(often - size / 100) < 4 * (0.25 / (2 * len(rounds))) ** 0.5
    assert any(2 in times.values() for times in rounds)
    assert who.weights(1) == rounds[0]
    assert who.cohort(1) == sorted(rounds[0])
    assert not any("none" in times for times in rounds)
    assert Sampling(who.job, list(reversed(sizes)), lambda: sizes).times(7) == rounds[6]
    with pytest.raises(RoundError, match="no client has said how many training examples it holds"):
        Sampling(who.job, list(sizes)).times(1)
    assert Sampling(who.job, ["a"]).times(1) == {"a": 1}


def test_by_poisson_each_client_comes_by_itself_and_never_nobody() -> None:
    sizes = dict.fromkeys("abcd", 5)
    rounds, who = drawn("poisson", 0.3, sizes)
    nobody = 0.7**4
    for name in sizes:
        often = sum(name in times for times in rounds) / len(rounds)
        assert abs(often - 0.3 / (1 - nobody)) < 0.03
    together = sum("a" in t and "b" in t for t in rounds) / len(rounds)
    assert abs(together - 0.09 / (1 - nobody)) < 0.02
    assert {len(times) for times in rounds} == {1, 2, 3, 4}
    assert {n for times in rounds for n in times.values()} == {1}
    assert who.weights(1) is None


def test_who_was_drawn_twice_counts_twice_whatever_it_holds(tmp_path: Path) -> None:
    model = SMALL.save_model(tmp_path / "model")
    resources = SMALL.resources(SMALL.job(model, SMALL.save_rows(tmp_path / "rows.csv", 40)))
    stage, one = stage_of("params", resources, SMALL.watch), dict[str, Any]()
    ledger = Ledger()

    def played(cohort_: Sequence[str], weights: Mapping[str, int] | None) -> Any:
        state = LocalEngine(resources.job).round(
            stage.mode, stage.mode.start(), cohort_,
            worker=lambda c: resources.worker(c, SMALL.watch), client_states={},
            keep=lambda *_: None, ledger=ledger, watch=SMALL.watch, weights=weights,
        )  # fmt: skip
        return stage.mode.server_model(state)

    both = ("client-01", "client-02")
    one = {c: played([c], None) for c in both}
    found = played(both, {"client-01": 2, "client-02": 1})
    for name, tensor in found.items():
        mean = (2 * one[both[0]][name].double() + one[both[1]][name].double()) / 3
        assert float((tensor - mean).abs().max()) < 1e-6
    assert ledger.rows()["client-01"]["share"] == pytest.approx(2 / 3)


def test_no_client_at_all_is_refused() -> None:
    with pytest.raises(RoundError) as caught:
        cohort(job_of(1.0), [], 1)
    assert str(caught.value) == "no client holds a training example; look at clients.partition"


# --- a stage ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """A server that counts."""

    total: Mapping[str, Tensor]
    closed: int = 0
    graph: object = field(default=None, metadata={"open": True})


class Counting(Params):
    """A mode of which only the start is used."""

    def start(self) -> Any:
        return Count(total={"n": torch.zeros(1)})


class Engine:
    """Adds one for every client of a round; stops in the round it is told to."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.rounds = stop, list[Any]()

    def round(self, mode: Any, state: Count, cohort: Sequence[str], **more: Any) -> Count:
        del mode
        self.rounds.append((state.closed + 1, tuple(cohort), dict(more["client_states"])))
        if state.closed + 1 == self.stop:
            raise TrainingError("loss became nan")
        mine, ledger = more["client_states"], more["ledger"]
        for client in cohort:
            ledger.computed(client, flops=state.closed + 1, peak_bytes=5, seconds=0.1)
            more["watch"]({"event": "step", "client": client})
            seen = int(mine.get(client, ClientState()).facts.get("seen", 0)) + 1
            more["keep"](client, ClientState(facts={"seen": seen}))
        total = {"n": state.total["n"] + len(cohort)}
        return Count(total=total, closed=state.closed + 1, graph=object())


def score(right: int, count: int) -> Score:
    table = torch.tensor([[right, count - right], [0, 0]])
    return Score(confusion=table, loss_sum=float(count), correct=right, count=count)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    room = tmp_path_factory.mktemp("round")
    job = SMALL.job(SMALL.save_model(room / "model"), SMALL.save_rows(room / "rows.csv", 20))
    return SMALL.resources(job).body()


@pytest.fixture
def stage(body: SharedModel) -> Stage[Any, Any]:
    def evaluate(state: Count, client_states: Mapping[str, ClientState]) -> Scores:
        del state
        each = {n: score(min(int(client_states[n].facts["seen"]), 4), 4) for n in client_states}
        return pooled(each, 2)

    return Stage(
        name="toy",
        mode=Counting(aggregate=Mean(), initial=body.initial, layout=body.layout),
        clients=NAMES,
        worker=lambda client, watch: (client, watch),
        evaluate=evaluate,
        body=body,
        job=job_of(1.0),
    )


def test_a_stage_plays_its_rounds_and_says_so(stage: Stage[Any, Any], tmp_path: Path) -> None:
    events: list[Any] = []
    engine = Engine()
    out = play(replace(stage, job=job_of(0.2)), engine, folder=tmp_path, watch=events.append)
    assert [r[0] for r in engine.rounds] == [1, 2, 3]
    assert out.state.total["n"].tolist() == [6.0]
    assert {(e["stage"], e["round"]) for e in events} == {("toy", 1), ("toy", 2), ("toy", 3)}
    assert [e["event"] for e in events[:5]] == [
        "round_start", "step", "step", "evaluate", "round_end",
    ]  # fmt: skip
    assert events[0]["clients"] == list(engine.rounds[0][1])
    assert [row["round"] for row in out.rows] == [1, 2, 3]
    assert [events[i]["flops"] for i in (4, 9, 14)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("every", "tested"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])]
)
def test_models_are_tested_as_often_as_the_job_says_and_at_the_end(
    every: int, tested: list[int], stage: Stage[Any, Any], tmp_path: Path
) -> None:
    job = job_of(1.0, rounds=5)
    job = job.model_copy(update={"evaluate": Evaluate(every=every)})
    events: list[Any] = []
    out = play(replace(stage, job=job), Engine(), folder=tmp_path, watch=events.append)
    assert [e["round"] for e in events if e["event"] == "evaluate"] == tested
    assert [row["round"] for row in out.rows if "accuracy" in row and "own" in row] == tested
    assert [row["round"] for row in out.rows if "per_client" in row] == tested
    assert [e["round"] for e in events if e["event"] == "round_end"] == [1, 2, 3, 4, 5]
    assert all(row["seconds"] >= 0 and row["clients"] for row in out.rows)
    assert summary(out)["final"]["accuracy"] == out.rows[-1]["accuracy"]
    assert job.tests == len(tested)
    assert not job.tested(6)


def test_a_client_that_sits_out_keeps_its_state(stage: Stage[Any, Any], tmp_path: Path) -> None:
    engine = Engine()
    out = play(
        replace(stage, job=job_of(0.3, rounds=6)), engine, folder=tmp_path, watch=SMALL.watch
    )
    counts = {n: sum(n in names for _, names, _ in engine.rounds) for n in NAMES}
    assert {c: s.facts["seen"] for c, s in out.clients.items()} == {
        c: n for c, n in counts.items() if n
    }
    assert max(counts.values()) > 1, "somebody must come back"


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_stage_goes_on_from_its_last_closed_round(
    stop: int, stage: Stage[Any, Any], tmp_path: Path
) -> None:
    whole = play(
        replace(stage, job=job_of(0.3)), Engine(), folder=tmp_path / "whole", watch=SMALL.watch
    )
    with pytest.raises(TrainingError):
        play(
            replace(stage, job=job_of(0.3)),
            Engine(stop),
            folder=tmp_path / "run",
            watch=SMALL.watch,
        )
    saved = read(tmp_path / "run")
    assert (saved.closed if saved else 0) == stop - 1
    engine = Engine()
    again = play(
        replace(stage, job=job_of(0.3)), engine, folder=tmp_path / "run", watch=SMALL.watch
    )
    assert [r[0] for r in engine.rounds] == list(range(stop, 4))
    assert torch.equal(again.state.total["n"], whole.state.total["n"])
    assert dict(again.clients) == dict(whole.clients)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in again.rows]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.rows]


def test_a_finished_stage_plays_nothing(stage: Stage[Any, Any], tmp_path: Path) -> None:
    play(replace(stage, job=job_of(0.3)), Engine(), folder=tmp_path, watch=SMALL.watch)
    engine = Engine()
    out = play(replace(stage, job=job_of(0.3)), engine, folder=tmp_path, watch=SMALL.watch)
    assert not engine.rounds
    assert out.state.closed == 3


def test_a_longer_job_goes_on_where_the_shorter_one_ended(
    stage: Stage[Any, Any], tmp_path: Path
) -> None:
    play(replace(stage, job=job_of(0.3, rounds=2)), Engine(), folder=tmp_path, watch=SMALL.watch)
    engine = Engine()
    play(replace(stage, job=job_of(0.3, rounds=4)), engine, folder=tmp_path, watch=SMALL.watch)
    assert [r[0] for r in engine.rounds] == [3, 4]


def test_scores_are_pooled_over_examples_and_not_over_clients() -> None:
    found = pooled({"a": score(1, 1), "b": score(0, 3)}, 2)
    assert found.pooled.accuracy == 0.25
    assert found.pooled.count == 4
    assert found.each["a"]["accuracy"] == 1.0
    assert found.each["b"]["examples"] == 3
    one_by_one = pooled(iter([("a", score(1, 1)), ("b", score(0, 3))]), 2)
    assert one_by_one.each == found.each
    assert one_by_one.pooled.row() == found.pooled.row()


def test_a_stage_without_test_examples_scores_nothing() -> None:
    assert pooled({}, 3).pooled.count == 0


def test_a_summary_ends_with_the_last_rounds_figures(
    stage: Stage[Any, Any], tmp_path: Path
) -> None:
    out = play(
        replace(stage, job=job_of(1.0, rounds=2)), Engine(), folder=tmp_path, watch=SMALL.watch
    )
    found = summary(out)
    assert found["rounds"] == out.rows
    figures = ("accuracy", "macro_f1", "loss", "n", "own")
    assert found["final"] == {k: out.rows[-1][k] for k in figures}
    assert found["totals"]["client_flops"] == 10 * 1 + 10 * 2
    assert found["totals"]["seconds"] == sum(r["seconds"] for r in out.rows)
