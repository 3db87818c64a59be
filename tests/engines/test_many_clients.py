"""More clients than are named one by one: the same numbers as with few, told in less."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import copy
import csv
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.core import events
from triskel.core.untrusted import VALUES_MOST
from triskel.data import federate
from triskel.data.batches import batch_of
from triskel.data.tokens import Ragged, concatenated
from triskel.engines.local import LocalEngine
from triskel.experiment import rounds as round_module
from triskel.experiment.compare import Request, resume, run
from triskel.report.cells import rows
from triskel.report.links import LINKS
from triskel.report.page import render
from triskel.report.reading import read
from triskel.report.tables import final_table
from triskel.training.evaluate import evaluate, evaluate_each, grouped
from triskel.types import Examples

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
TIMES = {"seconds", "compute_s"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    room = tmp_path_factory.mktemp("many")
    return SMALL.job(
        SMALL.save_model(room / "model"),
        SMALL.save_rows(room / "rows.csv", 40),
        rounds=3,
        clients={"count": 6, "cohort": 0.5},
    )


def played(job: Any, place: Path, limit: int) -> dict[str, Any]:
    """Play a job that calls more than `limit` clients many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_module, "EACH", limit)
        patch.setattr(federate, "EACH", limit)
        patch.setattr(events, "LISTED", limit)
        return run(job, Request(baselines=("base",)), place, LocalEngine(job), SMALL.watch)


@pytest.fixture(scope="module")
def both(job: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    room = tmp_path_factory.mktemp("runs")
    few = played(job, room / "few", 6)
    return SimpleNamespace(few=few, many=played(job, room / "many", 5), room=room)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def test_a_limit_as_large_as_the_federation_changes_nothing(both: SimpleNamespace) -> None:
    for mode in ("params", "logits", "split"):
        for one in both.few["modes"][mode]["rounds"]:
            assert set(one) >= {"clients", "per_client"}
            assert "sum" not in one
    assert not list((both.room / "few").rglob("costs-*.csv"))


@pytest.mark.parametrize("mode", ["params", "logits", "split"])
def test_what_many_spent_is_the_sum_of_what_each_spent(both: SimpleNamespace, mode: str) -> None:
    few, many = both.few["modes"][mode], both.many["modes"][mode]
    assert timeless(many["totals"]) == timeless(few["totals"])
    assert timeless(many["final"]) == timeless(few["final"])
    seen: set[str] = set()
    for one, other in zip(many["rounds"], few["rounds"], strict=True):
        seen |= set(other["clients"])
        assert "clients" not in one
        whole, parts = one["sum"], list(other["clients"].values())
        assert (whole["clients"], whole["seen"]) == (3, len(seen))
        assert whole["flops"] == sum(p["flops"] for p in parts)
        assert whole["peak_client_bytes"] == max(p["peak_client_bytes"] for p in parts)
        for way in ("up", "down"):
            for key in ("payload_bytes", "message_bytes", "messages"):
                assert whole[way][key] == sum(p[way][key] for p in parts)
            names = {name for p in parts for name in p[way]["sections"]}
            assert whole[way]["sections"] == {
                n: {"payload_bytes": sum(p[way]["sections"][n]["payload_bytes"] for p in parts)}
                for n in sorted(names)
            }
    assert len(seen) > 3, "cohorts differ"
    assert timeless(many["rounds"][-1]["per_client"]) == timeless(few["rounds"][-1]["per_client"])
    assert not any("per_client" in one for one in many["rounds"][:-1])


@pytest.mark.parametrize("mode", ["params", "logits", "split"])
def test_a_table_of_each_round_holds_what_each_client_spent(
    both: SimpleNamespace, mode: str
) -> None:
    for one in both.few["modes"][mode]["rounds"]:
        place = both.room / "many" / "stages" / mode / f"costs-{one['round']:06d}.csv"
        with place.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["client"] for line in lines] == sorted(one["clients"])
        for line in lines:
            spent = one["clients"][line["client"]]
            assert int(line["flops"]) == spent["flops"]
            assert int(line["peak_client_bytes"]) == spent["peak_client_bytes"]
            assert float(line["compute_s"]) > 0
            for way in ("up", "down"):
                for key in ("payload_bytes", "message_bytes", "messages"):
                    assert int(line[f"{way}.{key}"]) == spent[way][key]


def test_the_slowest_client_on_each_link_is_kept(both: SimpleNamespace) -> None:
    for one in both.many["modes"]["split"]["rounds"]:
        place = both.room / "many" / "stages" / "split" / f"costs-{one['round']:06d}.csv"
        with place.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        for link in LINKS:
            took = {
                line["client"]: float(line["compute_s"])
                + 8 * int(line["up.message_bytes"]) / link.up_bits
                + 8 * int(line["down.message_bytes"]) / link.down_bits
                + (int(line["up.messages"]) + int(line["down.messages"])) * link.delay_s
                for line in lines
            }
            assert max(took, key=lambda c: took[c]) in one["slowest"]


def test_the_report_of_many_says_the_same(both: SimpleNamespace) -> None:
    few, many = read(both.few), read(both.many)
    for one, other in zip(rows(few), rows(many), strict=True):
        told = [{k: c.text for k, c in row.cells.items() if k != "time"} for row in (one, other)]
        assert told[0] == told[1]
    for mode in few.modes:
        assert few.modes[mode].members == many.modes[mode].members
    assert few.clients == many.clients
    assert render(both.many)
    assert final_table(both.many).row_count == final_table(both.few).row_count


def test_the_log_counts_long_lists(both: SimpleNamespace) -> None:
    kept = {}
    for name in ("few", "many"):
        text = (both.room / name / "events.jsonl").read_text(encoding="utf-8")
        kept[name] = [json.loads(line) for line in text.splitlines()]
    first = {n: next(e for e in es if e["event"] == "run_start") for n, es in kept.items()}
    assert len(first["few"]["clients"]) == 6
    assert first["many"]["clients"] == 6


def test_a_run_of_many_that_was_stopped_ends_with_the_same_numbers(
    job: Any, both: SimpleNamespace, tmp_path: Path
) -> None:
    class Stops(LocalEngine):
        def round(self, mode: Any, state: Any, cohort: Any, **more: Any) -> Any:
            if state.closed == 2 and type(state).__name__ == "LogitsState":
                raise KeyboardInterrupt
            return super().round(mode, state, cohort, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_module, "EACH", 5)
        patch.setattr(federate, "EACH", 5)
        request = Request(baselines=("base",))
        with pytest.raises(KeyboardInterrupt):
            run(job, request, tmp_path / "run", Stops(job), SMALL.watch)
        found = resume(tmp_path / "run", LocalEngine, SMALL.watch)
    for mode in ("params", "logits", "split"):
        stop, whole = found["modes"][mode], copy.deepcopy(both.many["modes"][mode])
        for one in (*stop["rounds"], *whole["rounds"]):
            one.pop("slowest", None)  # which it is depends on times
        assert timeless(stop) == timeless(whole)


def test_a_long_run_of_few_is_told_in_less_too(
    job: Any, both: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_module, "ROWS", 17)
    long = run(job, Request(baselines=("base",)), tmp_path, LocalEngine(job), SMALL.watch)
    for mode in ("params", "logits", "split"):
        rows, whole = long["modes"][mode]["rounds"], both.few["modes"][mode]["rounds"]
        assert all("sum" in one and "clients" not in one for one in rows)
        assert timeless(rows[-1]["per_client"]) == timeless(whole[-1]["per_client"])
        assert [one["accuracy"] for one in rows] == [one["accuracy"] for one in whole]
        assert timeless(long["modes"][mode]["totals"]) == timeless(
            both.many["modes"][mode]["totals"]
        )


def test_the_longest_run_that_tells_of_each_client_is_still_read(both: SimpleNamespace) -> None:
    text = json.dumps(both.few["modes"])
    values = text.count("[") + text.count("{") + text.count(",")
    assert values / (6 * 3) * round_module.ROWS < VALUES_MOST


def test_labels_that_a_client_lacks_are_left_out_where_clients_are_many(
    both: SimpleNamespace,
) -> None:
    few, many = both.few["data"]["clients"], both.many["data"]["clients"]
    for client, held in many.items():
        assert held["labels"] == {k: v for k, v in few[client]["labels"].items() if v}


# --- shares that are evaluated together -------------------------------------------------------


def shares(count: int, most: int, task: str) -> dict[str, Examples]:
    source = torch.Generator().manual_seed(3)

    def draw(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=source)

    found: dict[str, Examples] = {}
    for i in range(count):
        many = int(draw(0, most))
        ids = [draw(3, 40, int(draw(2, 30))).tolist() for _ in range(many)]
        scored = [[False, *([True] * (len(row) - 1))] for row in ids]
        found[f"c{i}"] = Examples(
            ids=Ragged.ids(ids),
            labels=draw(-1, 3, many).tolist() if task == "classify" else (),
            scored=Ragged.marks(scored) if task == "causal" else (),
        )
    return found


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("most", [4, 60, 300])
def test_clients_scored_together_have_the_scores_they_have_alone(
    task: str, most: int, tmp_path: Path
) -> None:
    rows_ = SMALL.save_rows(tmp_path / "rows.csv", 20)
    body = SMALL.resources(SMALL.job(SMALL.save_model(tmp_path / "m"), rows_, task=task)).body()
    held = shares(20, most, task)
    groups = grouped(held)
    assert [c for group in groups for c in group.clients] == list(held)
    assert any(len(group.clients) > 1 for group in groups) or most > 60
    found = dict(evaluate_each(body, body.initial, groups))
    assert list(found) == list(held)
    for client, examples in held.items():
        alone = evaluate(body, body.initial, examples)
        assert (found[client].count, found[client].correct) == (alone.count, alone.correct)
        assert found[client].loss_sum == pytest.approx(alone.loss_sum, rel=1e-5)
        if alone.confusion is not None:
            assert torch.equal(found[client].confusion, alone.confusion)


def test_a_large_vocabulary_is_scored_some_positions_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_ = SMALL.save_rows(tmp_path / "rows.csv", 20)
    body = SMALL.resources(SMALL.job(SMALL.save_model(tmp_path / "m"), rows_, task="causal")).body()
    held = shares(6, 9, "causal")
    leaves, wanted = body.parameters(body.initial), dict[str, tuple[int, int, float]]()
    for client, examples in held.items():  # text by text, all logits at once
        count, right, loss = 0, 0, 0.0
        for index in range(len(examples)):
            batch = batch_of(examples, [index])
            logits = body.logits(leaves, batch).detach().double()
            count += len(logits)
            right += int((logits.argmax(1) == batch.targets).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum"))
        wanted[client] = (count, right, loss)
    vocabulary, sizes = len(body.blocks.head.weight), list[int]()
    monkeypatch.setattr("triskel.model.shared.AT_ONCE", 5 * vocabulary + 1)
    hook = body.blocks.head.register_forward_hook(lambda *x: sizes.append(x[2].numel()))
    alone = {client: evaluate(body, body.initial, held[client]) for client in held}
    for found in (alone, dict(evaluate_each(body, body.initial, grouped(held)))):
        for client, (count, right, loss) in wanted.items():
            assert (found[client].count, found[client].correct) == (count, right)
            assert found[client].loss_sum == pytest.approx(loss, rel=1e-5)
    hook.remove()
    assert max(sizes) == 5 * vocabulary
    assert torch.is_grad_enabled()


def test_nobody_at_all_is_scored_as_nobody(tmp_path: Path) -> None:
    rows_ = SMALL.save_rows(tmp_path / "rows.csv", 20)
    body = SMALL.resources(SMALL.job(SMALL.save_model(tmp_path / "m"), rows_)).body()
    assert grouped({}) == []
    nobody = shares(3, 1, "classify")
    found = dict(evaluate_each(body, body.initial, grouped(nobody)))
    assert [one.count for one in found.values()] == [0, 0, 0]


# --- tokens, end to end -----------------------------------------------------------------------


def test_rows_read_as_they_would_from_a_list() -> None:
    plain = [[5, 6, 7], [8], [70_000, 1]]
    it = Ragged.ids(plain)
    assert (len(it), it.lengths) == (3, [3, 1, 2])
    assert [row.tolist() for row in it] == plain
    assert [it[i].tolist() for i in (0, -1, 2)] == [plain[0], plain[-1], plain[2]]
    assert [row.tolist() for row in it[1:]] == plain[1:]
    assert {row.dtype for row in it} == {torch.int64}
    it[0][0] = 99
    assert it[0].tolist() == plain[0], "a row is a copy"
    for place in (3, -4):
        with pytest.raises(IndexError):
            it[place]
    assert list(Ragged.ids([])) == []
    assert not Ragged.marks([])
    assert [row.tolist() for row in Ragged.marks([[False, True], []])] == [[False, True], []]
    assert Ragged.marks([[True]])[0].dtype == torch.bool


def test_examples_are_joined_in_order() -> None:
    parts = [
        Examples(ids=Ragged.ids([[1], [2, 3]]), labels=(0, 1)),
        Examples(ids=(), labels=()),
        Examples(ids=[torch.tensor([4])], labels=[2]),
    ]
    found = concatenated(parts)
    assert [row.tolist() for row in found.ids] == [[1], [2, 3], [4]]
    assert found.labels == [0, 1, 2]
    assert not found.scored
    ends = concatenated([parts[0], parts[0]])
    assert isinstance(ends.ids, Ragged)
    assert [row.tolist() for row in ends.ids] == [[1], [2, 3], [1], [2, 3]]
