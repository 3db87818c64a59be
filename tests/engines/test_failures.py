"""What goes wrong in a federation, and that it ends in one sentence that names whose and when."""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.config.job import Job
from triskel.engines.local import LocalEngine
from triskel.errors import JobError, LimitError, MessageError, RoundError, TrainingError
from triskel.experiment.compare import Request, resume, run
from triskel.experiment.resources import LocalResources
from triskel.model.shared import SharedModel
from triskel.training.loop import TrainStep
from triskel.training.mode_setting import mode_of
from triskel.types import Ask, Message, Section

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
NAN = float("nan")
MODES = ("params", "logits", "split")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.save_model(tmp_path_factory.mktemp("failures") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.save_rows(tmp_path_factory.mktemp("failures") / "rows.csv", 30)


def play(resources: LocalResources, mode: str, **spoilt: Any) -> dict[str, Any]:
    """Play one round; `spoilt` replaces functions of the mode."""
    (rows,) = SMALL.play(resources, mode, **spoilt)
    return rows


# --- numbers that are none --------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the loss of the `at`-th training step NaN."""
    calls, losses = 0, TrainStep._losses

    def poisoned(self: TrainStep, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        return [loss * NAN if calls == at else loss for loss in losses(self, *rest)]

    monkeypatch.setattr(TrainStep, "_losses", poisoned)


@pytest.mark.parametrize("mode", ["params", "logits"])
def test_a_loss_that_is_none_stops_with_client_round_and_step(
    mode: str, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = SMALL.job(model, rows)  # on the reference path, so one client after the other
    plain = job.model.model_copy(update={"compute": "reference"})
    resources = SMALL.resources(job.model_copy(update={"model": plain}))
    first = len(resources.tokens.share("client-01").train)
    steps = -(-first // resources.job.train.batch)
    poison(monkeypatch, steps + 2 if mode == "params" else 2)
    who, step = ("client-02", 1) if mode == "params" else ("client-01", 1)
    with pytest.raises(TrainingError) as caught:
        play(resources, mode)
    assert str(caught.value) == (
        f"loss became nan at client {who!r}, round 1, train step {step}; lower train.lr, set "
        "train.max_grad_norm = 1, or look for broken rows in that client's data"
    )


def test_a_loss_that_is_none_at_the_servers_head_names_the_client(
    model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = SMALL.resources(SMALL.job(model, rows, split={"labels": "shared", "cut": (1, 3)}))

    def poisoned(self: SharedModel, *rest: Any, **more: Any) -> Any:
        found = top(self, *rest, **more)
        return torch.cat([found[:-1], found[-1:] * NAN])

    top = SharedModel.top
    monkeypatch.setattr(SharedModel, "top", poisoned)
    with pytest.raises(TrainingError, match=r"^loss became nan at client 'client-0\d', round 1, "):
        play(resources, "split")


def test_a_rate_far_too_high_stops_the_run_and_the_run_can_be_resumed(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    job = SMALL.job(model, rows, rounds=3)
    folder, request = tmp_path / "run", Request(modes=("params",), baselines=())
    calm = run(job, request, tmp_path / "calm", LocalEngine(job), SMALL.watch)
    events: list[Any] = []

    class Unlucky(LocalEngine):
        """Goes wrong in round 3."""

        def round(self, mode: Any, state: Any, cohort: Any, **more: Any) -> Any:
            if state.closed == 2:
                state = dataclasses.replace(
                    state, adapter={n: t + 3e38 for n, t in state.adapter.items()}
                )
            return super().round(mode, state, cohort, **more)

    with pytest.raises((TrainingError, MessageError)) as caught:
        run(job, request, folder, Unlucky(job), events.append)
    assert "client-01" in str(caught.value)
    assert events[-1] == {"event": "failed", "text": str(caught.value)}
    log = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["event"] == "failed"
    found = resume(folder, LocalEngine, SMALL.watch)
    for one, two in zip(
        found["modes"]["params"]["rounds"], calm["modes"]["params"]["rounds"], strict=True
    ):
        assert one["loss"] == two["loss"]
        assert one["accuracy"] == two["accuracy"]


@pytest.mark.parametrize("mode", MODES)
def test_a_message_that_carries_nan_names_its_client(mode: str, model: Path, rows: Path) -> None:
    resources = SMALL.resources(SMALL.job(model, rows))

    def spoil(message: Message) -> Message:
        sections = {
            name: dataclasses.replace(
                section, tensors={n: torch.full_like(t, NAN) for n, t in section.tensors.items()}
            )
            for name, section in message.sections.items()
        }
        return dataclasses.replace(message, sections=sections)

    def lying(work: Any) -> Any:
        def talk(task: Message, worker: Any, mine: Any) -> Any:
            real, reply = work(task, worker, mine), None
            while True:
                try:
                    step = real.send(reply)
                except StopIteration as end:
                    update, after = end.value
                    return (spoil(update) if worker.client == "client-02" else update), after
                if worker.client == "client-02" and isinstance(step, Ask):
                    step = type(step)(spoil(step.ask))
                reply = yield step

        return talk

    with pytest.raises(
        MessageError, match=r"^message from client 'client-02' \((ask|update)\): .*NaN or infinity"
    ):
        play(resources, mode, work=lying)


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["params", "split"])
def test_a_limit_that_is_too_small_names_size_and_limit(mode: str, model: Path, rows: Path) -> None:
    resources = SMALL.resources(SMALL.job(model, rows, wire={"max_mb": 0.001}))
    with pytest.raises(LimitError) as caught:
        play(resources, mode)
    text = str(caught.value)
    assert text.startswith("message to client 'client-01' (task): message has ")
    assert text.endswith(" bytes, the limit is 1000; raise wire.max_mb or choose a smaller codec")


# --- odd clients ------------------------------------------------------------------------------


def result(job: Job, folder: Path, watch: Any = SMALL.watch, **more: Any) -> dict[str, Any]:
    request = Request(**{"modes": MODES, "baselines": ("base", "local", "central"), **more})
    return run(job, request, folder, LocalEngine(job), watch)


def save(place: Path, lines: list[str]) -> Path:
    place.write_text("\n".join(["text,label,place", *lines]) + "\n", encoding="utf-8")
    return place


def test_a_client_without_training_examples_is_warned_about_and_never_asked(
    model: Path, tmp_path: Path
) -> None:
    lines = [f"w{i} w{i + 1},{'good' if i % 2 else 'bad'},north" for i in range(14)]
    train = save(tmp_path / "train.csv", lines)
    test = save(tmp_path / "test.csv", ["w1 w2,good,north", "w3,bad,north", "w4,bad,south"])
    job = SMALL.job(
        model,
        train,
        data={"test": str(test)},
        clients={"partition": "natural", "by": "place"},
        logits={"public": 4},
    )
    events: list[Any] = []
    found = result(job, tmp_path / "run", events.append)
    warnings = [e["text"] for e in events if e["event"] == "warning"]
    assert "1 clients hold no training example and never take part: south" in warnings
    assert set(found["data"]["clients"]) == {"north", "south"}
    assert found["baselines"]["local"]["per_client"].keys() == {"north"}
    for mode in MODES:
        for row in found["modes"][mode]["rounds"]:
            assert set(row["clients"]) == {"north"}
            assert set(row["per_client"]) == {"north", "south"}
            assert row["per_client"]["south"]["examples"] == 1


def test_a_class_that_one_client_lacks_and_one_that_nobody_trained_on(
    model: Path, tmp_path: Path
) -> None:
    lines = [f"w{i},{'good' if i % 2 else 'bad'},north" for i in range(12)]
    lines += [f"w{i} w2,good,south" for i in range(6)]
    train = save(tmp_path / "train.csv", lines)
    test = save(
        tmp_path / "test.csv",
        ["w1,good,north", "w5,fair,north", "w2 w3,fair,south", "w9,bad,south"],
    )
    job = SMALL.job(
        model,
        train,
        data={"test": str(test), "classes": ["bad", "fair", "good"]},
        clients={"partition": "natural", "by": "place"},
        logits={"public": 4},
    )
    found = result(job, tmp_path / "run")
    assert found["data"]["classes"] == ["bad", "fair", "good"]
    assert found["data"]["clients"]["south"]["labels"]["bad"] == 0
    for mode in MODES:
        final = found["modes"][mode]["final"]
        assert 0 <= final["accuracy"] <= 1
        assert final["loss"] > 0


def test_a_client_of_one_example_takes_part(model: Path, tmp_path: Path) -> None:
    lines = [f"w{i} w{2 * i},{'good' if i % 2 else 'bad'},north" for i in range(12)]
    train = save(tmp_path / "train.csv", [*lines, "w7,good,south"])
    test = save(tmp_path / "test.csv", ["w1,good,north", "w3,bad,south"])
    job = SMALL.job(
        model,
        train,
        data={"test": str(test)},
        clients={"partition": "natural", "by": "place"},
        logits={"public": 4},
    )
    found = result(job, tmp_path / "run")
    assert found["data"]["clients"]["south"]["train"] == 1
    for mode in MODES:
        (row,) = found["modes"][mode]["rounds"]
        assert set(row["clients"]) == {"north", "south"}
        assert row["clients"]["south"]["flops"] > 0


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("pad", ["", "<s>"])
def test_a_tokenizer_without_a_padding_token_changes_nothing(
    task: str,
    pad: str,
    rows: Path,
    tmp_path: Path,
    model: Path,
) -> None:
    plain = SMALL.save_model(tmp_path / "model", pad=pad)
    assert (SMALL.tokenizer(pad=pad).pad_token or "") == pad
    request = {"modes": ("params",), "baselines": ()}
    one = result(SMALL.job(plain, rows, task=task), tmp_path / "one", **request)
    two = result(SMALL.job(model, rows, task=task), tmp_path / "two", **request)
    assert one["modes"]["params"]["final"] == two["modes"]["params"]["final"]


def test_a_comparison_leaves_strict_modes_that_cannot_run_before_anything_is_written(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    job = SMALL.job(model, rows, clients={"each": {"client-01": {"rank": 4}}})
    with pytest.raises(JobError, match=r"^mode params cannot run this job: a client has rank"):
        result(job, tmp_path / "run", strict=True)
    assert not (tmp_path / "run").exists()


def test_a_cut_beyond_the_model_is_refused_with_its_depth(model: Path, rows: Path) -> None:
    resources = SMALL.resources(SMALL.job(model, rows, split={"cut": (1, 9)}))
    with pytest.raises(JobError) as caught:
        play(resources, "split")
    assert str(caught.value) == (
        "split.cut must be [a, b] with 0 <= a < b <= 3 for this model, got [1, 9]"
    )


# --- peers that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_update_of_another_round_is_refused(mode: str, model: Path, rows: Path) -> None:
    it = mode_of(SMALL.resources(SMALL.job(model, rows)).setting(mode, SMALL.watch))
    state = it.start()
    late = Message(kind="update", facts={"round": 3, "examples": 1})
    with pytest.raises(MessageError, match=r"^message belongs to round 3, and round 1 is open$"):
        it.add(state, it.zero(state), "client-01", late)


@pytest.mark.parametrize("mode", MODES)
def test_a_round_in_which_nobody_finished_has_no_result(mode: str, model: Path, rows: Path) -> None:
    it = mode_of(SMALL.resources(SMALL.job(model, rows)).setting(mode, SMALL.watch))
    state = it.start()
    with pytest.raises(RoundError, match=r"; every client of the cohort failed$"):
        it.close(state, it.zero(state))


@pytest.mark.parametrize("count", [0, -2, NAN, "many"])
def test_an_update_resting_on_no_examples_is_refused(count: Any, model: Path, rows: Path) -> None:
    resources = SMALL.resources(SMALL.job(model, rows))
    it = mode_of(resources.setting("params", SMALL.watch))
    state = it.start()
    task = it.task(state, "client-01")
    update = Message(kind="update", sections=task.sections, facts={"round": 1, "examples": count})
    with pytest.raises((MessageError, RoundError)):
        it.add(state, it.zero(state), "client-01", update)


def test_a_gradient_for_no_open_batch_is_refused(model: Path, rows: Path) -> None:
    it = mode_of(SMALL.resources(SMALL.job(model, rows)).setting("split", SMALL.watch))
    slope = Section(
        kind="activations", tensors={"values": torch.zeros(2, 16)}, facts={"lengths": [2]}
    )
    ask = Message(
        kind="ask", topic="backward", sections={"gradient": slope},
        facts={"round": 1, "labelled": 1},
    )  # fmt: skip
    with pytest.raises(MessageError, match=r"^client 'client-02' sent a gradient for no open bat"):
        it.answer(it.start(), {"client-02": ask})


# --- waves ------------------------------------------------------------------------------------


def test_waves_of_split_change_trunk_steps_and_neither_bytes_nor_flops(
    model: Path, rows: Path
) -> None:
    """A smaller wave takes more trunk steps on fewer texts each, so losses differ by design."""
    found = {}
    for wave in (0, 1, 2, 3):
        resources = SMALL.resources(SMALL.job(model, rows, split={"wave": wave}))
        found[wave] = {
            client: (
                row["up"]["payload_bytes"],
                row["down"]["payload_bytes"],
                row["up"]["messages"],
                row["flops"],
                row["peak_client_bytes"],
            )
            for client, row in play(resources, "split").items()
        }
    assert found[0] == found[1] == found[2] == found[3]
