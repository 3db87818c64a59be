"""What is kept of each text: held against the result, against single texts, and against damage."""

import json
import runpy
import shutil
from dataclasses import replace
from itertools import combinations, product
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError
from triskel.experiment import records
from triskel.experiment.baselines import flops_of
from triskel.experiment.compare import Request, resume, run
from triskel.experiment.folder import safe
from triskel.experiment.resources import prepare
from triskel.experiment.summary import amounts, summary
from triskel.export.adapters import read_adapter
from triskel.numerics.metrics import PerText
from triskel.training.evaluate import evaluate
from triskel.types import Examples

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
ROWS = ("base", "local", "local_equal", "central", "params", "logits", "split")


@pytest.fixture(scope="module", params=["classify", "causal"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """One comparison of everything, with drop-outs."""
    room = tmp_path_factory.mktemp(request.param)
    SMALL.save_model(room / "model")
    SMALL.save_rows(room / "rows.csv", 60)
    torch.set_num_threads(1)
    job = SMALL.job(
        room / "model", room / "rows.csv", task=request.param, rounds=2, train={"lr": 0.01}
    )
    asked = Request(drop_share=0.4)
    result = run(job, asked, room / "run", LocalEngine(job), SMALL.watch)
    return SimpleNamespace(job=job, folder=room / "run", result=result)


def row_of(result: dict, name: str) -> dict:
    return result["baselines"][name] if name in result["baselines"] else result["modes"][name]


@pytest.mark.parametrize("name", ROWS)
def test_the_texts_of_a_row_add_up_to_its_figures_in_both_columns(
    whole: SimpleNamespace, name: str
) -> None:
    row, record = row_of(whole.result, name), records.read(whole.folder, name)
    assert record is not None
    figures = row.get("final", row)
    for column in records.COLUMNS:
        texts, told = record.columns[column], figures[column]
        count = int(texts.scored.sum())
        assert count
        assert told["accuracy"] == pytest.approx(float(texts.right.sum()) / count)
        assert told["loss"] == pytest.approx(float(texts.loss.sum()) / count)
    each = row["rounds"][-1]["per_client"] if "rounds" in row else row["per_client"]
    for client, one in each.items():
        mine = record.by_client("own")[client]
        assert one["accuracy"] == pytest.approx(float(mine.right.sum() / mine.scored.sum()))
        assert one["examples"] == int(mine.scored.sum())


@pytest.mark.parametrize("name", ["params", "split"])
def test_each_text_by_itself_reaches_what_is_kept_of_it(whole: SimpleNamespace, name: str) -> None:
    resources = prepare(whole.job, SMALL.watch)
    body = resources.body()
    tensors = read_adapter(whole.folder / "adapters" / name, body)
    record = records.read(whole.folder, name)
    assert record is not None
    for client, kept in record.by_client("everybody").items():
        tests = resources.tokens.share(client).test
        for place in range(len(tests)):
            alone = Examples(
                ids=[tests.ids[place]],
                labels=tests.labels[place : place + 1],
                scored=[tests.scored[place]] if tests.scored else (),
            )
            found = evaluate(body, tensors, alone)
            assert found.correct == kept.right[place]
            assert found.count == kept.scored[place]
            assert found.loss_sum == pytest.approx(float(kept.loss[place]), rel=1e-5)


def test_alone_on_everybodys_texts_is_the_mean_over_clients_models(whole: SimpleNamespace) -> None:
    record = records.read(whole.folder, "local")
    models = [records.read(whole.folder, f"local-client-0{n}") for n in (1, 2, 3)]
    assert record is not None
    for what in ("right", "loss"):
        parts = [getattr(m.columns["everybody"], what) for m in models if m is not None]
        torch.testing.assert_close(
            getattr(record.columns["everybody"], what), sum(parts) / len(models)
        )


def test_alone_at_equal_flops_computes_as_much_as_the_costliest_mode_and_less_than_a_round_more(
    whole: SimpleNamespace,
) -> None:
    row, modes = whole.result["baselines"]["local_equal"], whole.result["modes"]
    assert row["mode"] == "logits"
    assert row["mode"] == max(modes, key=lambda m: modes[m]["totals"]["client_flops"])
    local = whole.result["baselines"]["local"]["per_client"]
    for client, flops in flops_of(modes["logits"]["rounds"]).items():
        got, each = row["per_client"][client]["flops"], local[client]["flops"] / whole.job.rounds
        assert flops <= got < flops + each + 1
        assert got == pytest.approx(row["rounds_each"][client] * each, rel=0.1)
    assert row["client_flops"] == sum(one["flops"] for one in row["per_client"].values())


def test_the_summary_of_a_run_is_the_exact_test_of_its_pairs(whole: SimpleNamespace) -> None:
    found = whole.result["summary"]
    assert found == summary([whole.result], [whole.folder])
    rows = [name for name in found if name in ROWS]
    assert rows == list(ROWS)
    pairs = {(d["left"], d["right"], d["column"]) for d in found["differences"]}
    assert len(pairs) == len(found["differences"]) == 2 * len(ROWS) * (len(ROWS) - 1) // 2
    for name in ROWS:
        figures = row_of(whole.result, name).get("final", row_of(whole.result, name))
        for column in records.COLUMNS:
            told = found[name][column]
            assert told["mean"] == pytest.approx(figures[column][found["figure"]])
            assert told["low"] <= told["mean"] <= told["high"]
            assert told["n"] == 1
    modes = ("params", "logits", "split")
    families: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for one in found["differences"]:
        families.setdefault((one["column"], one["primary"]), []).append(one)
    asked = {
        key[0]: {(d["left"], d["right"]) for d in told} for key, told in families.items() if key[1]
    }
    beside = set(product(("base", "central"), modes))
    assert asked["everybody"] == beside | set(combinations(modes, 2))
    assert asked["own"] == set(product(("local", "local_equal"), modes))
    for told in families.values():
        stands = [d["p"] for d in sorted(told, key=itemgetter("p"))]
        last = next((i for i, p in enumerate(stands) if p * (len(stands) - i) >= 0.05), len(stands))
        assert sorted(d["p"] for d in told if d["beyond"]) == stands[:last]
    if found["figure"] == "accuracy":
        left, right = (records.read(whole.folder, name) for name in ("params", "base"))
        assert left is not None
        assert right is not None
        gap = left.columns["own"].right - right.columns["own"].right
        won, lost = int((gap > 0).sum()), int((gap < 0).sum())
        one = next(
            d for d in found["differences"]
            if (d["left"], d["right"], d["column"]) == ("base", "params", "own")
        )  # fmt: skip
        assert one["difference"] == pytest.approx(-float(gap.mean()))
        wanted = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
        assert one["p"] == pytest.approx(wanted)
    for mode in modes:
        assert set(found["clients"][mode]) == {"client-01", "client-02", "client-03"}


def test_a_record_that_was_deleted_as_its_error_says_is_written_anew(
    whole: SimpleNamespace, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (folder / "outcomes").iterdir()}
    for row in ("base", "local", "params"):
        (folder / "outcomes" / f"{row}.safetensors").unlink()
        (folder / "stages" / row / "done.json").unlink(missing_ok=True)
    resume(folder, LocalEngine, SMALL.watch)
    assert {p.name: p.read_bytes() for p in (folder / "outcomes").iterdir()} == before


def test_drop_outs_are_a_second_play_of_each_mode(whole: SimpleNamespace) -> None:
    lost = whole.result["readings"]["robustness"]
    assert set(lost) == {"params", "logits", "split"}
    for mode, one in lost.items():
        assert one["drop_share"] == 0.4
        shaky = records.read(whole.folder, f"{mode}~drop")
        plain = records.read(whole.folder, mode)
        assert shaky is not None
        assert plain is not None
        left, right = shaky.columns["everybody"], plain.columns["everybody"]
        what = "loss" if whole.job.data.task == "causal" else "right"
        gap = (getattr(left, what) - getattr(right, what)).sum() / right.scored.sum()
        assert one["difference"] == pytest.approx(float(gap))
    assert not list((whole.folder / "adapters").glob("*drop*"))


def test_equal_texts_have_identities_of_their_own_and_the_same_in_every_run() -> None:
    a = Examples(ids=[torch.tensor([3, 4]), torch.tensor([3, 4])], labels=(0, 0))
    b = Examples(ids=[torch.tensor([3, 4]), torch.tensor([3])], labels=(1, 0))
    found = records.identities([a, b])
    assert len(set(found.tolist())) == 4
    assert records.identities([a]).tolist() == found[:2].tolist()
    again = Examples(ids=[torch.tensor([3]), torch.tensor([3, 4])], labels=(0, 0))
    assert records.identities([again]).tolist() == [found[3], found[0]]


def per_text(*right: float) -> PerText:
    values = torch.tensor(right, dtype=torch.float64)
    return PerText(right=values, loss=values + 1, scored=torch.ones(len(right), dtype=torch.int64))


def test_a_client_that_was_not_measured_has_nothing_scored(tmp_path: Path) -> None:
    tests = {
        "ann": Examples(ids=[torch.tensor([3])], labels=(0,)),
        "bob": Examples(ids=[torch.tensor([4]), torch.tensor([5])], labels=(1, 1)),
    }
    made = records.gathered(
        tests, {"everybody": {"ann": per_text(1.0), "bob": per_text(0.0, 1.0)},
                "own": {"bob": per_text(1.0, 0.0), "ann": per_text(1.0, 1.0)}},
    )  # fmt: skip
    records.write(tmp_path, "params", made)
    read = records.read(tmp_path, "params")
    assert read is not None
    assert read.clients == ("ann", "bob")
    assert read.owner.tolist() == [0, 1, 1]
    assert read.columns["everybody"].right.tolist() == [1.0, 0.0, 1.0]
    assert read.columns["own"].scored.tolist() == [0, 1, 1]  # ann's speaks of other texts
    assert set(read.by_client("own")) == {"bob"}
    assert records.read(tmp_path, "logits") is None


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_record_is_named(tmp_path: Path, damage: bytes | None) -> None:
    tests = {"ann": Examples(ids=[torch.tensor([3])], labels=(0,))}
    records.write(
        tmp_path, "params",
        records.gathered(tests, {c: {"ann": per_text(1.0)} for c in records.COLUMNS}),
    )  # fmt: skip
    place = tmp_path / "outcomes" / "params.safetensors"
    place.write_bytes(place.read_bytes()[:-3] if damage is None else damage)
    with pytest.raises(CheckpointError, match="does not hold what was reached on each text"):
        records.read(tmp_path, "params")


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A comparison of one round, the top block trained, two clients without test texts."""
    room = tmp_path_factory.mktemp("lopsided")
    SMALL.save_model(room / "model")
    rows = SMALL.save_rows(room / "rows.csv", 60).read_text().splitlines()
    owners = ["who", *["many"] * 40, *["some"] * 18, "one", "lone"]
    (room / "rows.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(rows, owners, strict=True)))
    clients = {"partition": "natural", "by": "who"}
    job = SMALL.job(
        room / "model", room / "rows.csv", rounds=1, clients=clients, adapter={"blocks": "top:1"}
    )
    result = run(job, Request(), room / "run", LocalEngine(job), SMALL.watch)
    return SimpleNamespace(job=job, folder=room / "run", result=result)


def test_a_client_without_test_texts_takes_no_row_away(lopsided: SimpleNamespace) -> None:
    found = lopsided.result["summary"]
    assert [name for name in found if name in ROWS] == list(ROWS)
    tested = {c for c, one in lopsided.result["data"]["clients"].items() if one["test"]}
    assert tested == {"many", "some"}
    for mode in ("params", "logits", "split"):
        assert set(found["clients"][mode]) == tested
        assert found[mode]["better_off"]["clients"] == len(tested)
        assert found[mode]["worst"]["client"] in tested
    models = [
        records.read(lopsided.folder, safe(f"local:{c}"))
        for c in lopsided.result["data"]["clients"]
    ]
    record = records.read(lopsided.folder, "local")
    assert record is not None
    right = sum(m.columns["everybody"].right for m in models if m is not None) / 4
    torch.testing.assert_close(record.columns["everybody"].right, right)


def test_alone_at_equal_flops_computes_enough_with_kept_states_too(
    lopsided: SimpleNamespace,
) -> None:
    row = lopsided.result["baselines"]["local_equal"]
    for client, flops in flops_of(lopsided.result["modes"]["logits"]["rounds"]).items():
        done = json.loads(
            (lopsided.folder / "stages" / safe(f"local_equal:{client}") / "done.json").read_text()
        )
        each = [one["clients"][client]["flops"] for one in done["rounds"]]
        assert len(each) == row["rounds_each"][client] > 1
        assert each[1] < each[0], "what enters the top block is kept"
        assert sum(each[:-1]) < flops <= sum(each) == row["per_client"][client]["flops"]


def test_the_summary_says_who_does_worst_and_how_many_are_better_off(
    whole: SimpleNamespace,
) -> None:
    found, causal = whole.result["summary"], whole.job.data.task == "causal"
    for name in ROWS:
        row = row_of(whole.result, name)
        each = row["rounds"][-1]["per_client"] if "rounds" in row else row["per_client"]
        values = {c: one[found["figure"]] for c, one in each.items()}
        worst = sorted(values.values())[-1 if causal else 0]
        assert found[name]["worst"]["own"] == worst == values[found[name]["worst"]["client"]]
    for mode, each in found["clients"].items():
        told = found[mode]["better_off"]
        far = [one["difference"] * (-1 if causal else 1) for one in each.values()]
        assert told["clients"] == len(each)
        assert told["more"] == sum(x > 0 for x in far)
        assert told["gain"] + told["lose"] == sum(o["verdict"] != "even" for o in each.values())


@pytest.mark.parametrize("whole", ["classify"], indirect=True)
def test_drop_outs_are_beyond_chance_only_after_correction_for_the_modes(
    whole: SimpleNamespace, tmp_path: Path
) -> None:
    """Six texts lost in each mode are p = 1/32 each, and by Holm nothing over three."""
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    for mode in ("params", "logits", "split"):
        kept = records.read(folder, mode)
        assert kept is not None
        full = kept.columns["everybody"]
        right = torch.ones_like(full.right)
        fewer = right.clone()
        fewer[:6] = 0
        for row, values in ((mode, right), (f"{mode}~drop", fewer)):
            columns = {c: replace(full, right=values) for c in records.COLUMNS}
            records.write(folder, row, replace(kept, columns=columns))
    lost = amounts([whole.result], [folder])["readings"]["robustness"]
    for mode in ("params", "logits", "split"):
        assert lost[mode]["p"] == pytest.approx(1 / 32)
        assert lost[mode]["beyond"] is False
