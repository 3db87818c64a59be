"""What is no update or task of scalars along seeds is refused, and so is a job that has none."""

# ruff: noqa: ANN401 - modes and messages of either kind

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.config.job import Job, unfederated, unsupported
from triskel.config.read import parse
from triskel.errors import JobError, MessageError, TrainingError
from triskel.modes.params.mode import Params
from triskel.numerics.replay import MOST
from triskel.training import conversation
from triskel.types import ClientState, Message, Section

tests = Path(__file__).parents[1]
tiny = SimpleNamespace(**runpy.run_path(str(tests / "helpers" / "tiny.py")))
ours = SimpleNamespace(**runpy.run_path(str(tests / "modes" / "test_seeds.py")))
KSEED, MEZO, BOTH, built = ours.KSEED, ours.MEZO, ours.BOTH, ours.built
NAN, INFINITE = float("nan"), float("inf")


def pairs(
    seeds: Any = (0, 1, 2, 3, 4),
    scalars: Any = (1.0,) * 5,
    *,
    whole: torch.dtype = torch.int32,
    floats: torch.dtype = torch.float32,
) -> Section:
    """Five pairs, or others."""
    tensors = {
        "seeds": torch.tensor(seeds, dtype=whole),
        "scalars": torch.tensor(scalars, dtype=floats),
    }
    return Section(kind="seeds", tensors=tensors)


UPDATES = [
    (pairs(scalars=(1.0, NAN, 1.0, 1.0, 1.0)), "has the scalar nan; none is beyond 4096"),
    (pairs(scalars=(1.0, 1.0, 1.0, 1.0, -INFINITE)), "has the scalar -inf; none is beyond 4096"),
    (pairs(scalars=(1.0, 1.0, 2 * MOST, 1.0, 1.0)), "has the scalar 8192; none is beyond 4096"),
    (pairs(seeds=(0, 1, -1, 2, 3)), "has seed -1, and seeds go from 0 to"),
    (pairs((0,) * 6, (1.0,) * 6), r"shape is \[6\], expected \[5\]"),
    (pairs((0,) * 4, (1.0,) * 4), r"shape is \[4\], expected \[5\]"),
    (pairs(floats=torch.float64), "holds float64, expected float32"),
    (pairs(whole=torch.int64), "holds int64, expected int32"),
    (Section(kind="seeds", tensors={"scalars": torch.ones(5)}), "lacks tensor 'seeds'"),
    (replace(pairs(), kind="labels"), "is of kind 'labels', expected 'seeds'"),
]


@BOTH
@pytest.mark.parametrize(("section", "why"), UPDATES)
def test_an_update_that_is_none_is_refused_in_one_sentence(
    exchange: dict[str, Any], section: Section, why: str
) -> None:
    refused(exchange, section, why)


def refused(exchange: dict[str, Any], section: Section, why: str, **changes: object) -> None:
    """Hold that a section is no update."""
    mode, _ = built(exchange)
    state, facts = mode.start(), {"round": 1, "examples": 3, "loss": 1.0, **changes}
    update = Message(kind="update", sections={"steps": section}, facts=facts)  # type: ignore[arg-type]
    with pytest.raises(MessageError, match=why) as caught:
        mode.add(state, mode.zero(state), "eve", update)
    assert "\n" not in str(caught.value)


@BOTH
def test_an_update_of_another_round_or_of_no_examples_is_refused(exchange: dict[str, Any]) -> None:
    refused(exchange, pairs(), "belongs to round 2, and round 1 is open", round=2)
    refused(exchange, pairs(), "'examples' must be a number of at least 1, got 0", examples=0)


def test_a_seed_beyond_those_that_there_are_is_refused() -> None:
    refused(KSEED, pairs(seeds=(0, 1, 8, 2, 3)), "has seed 8, and seeds go from 0 to 7")
    mode, _ = built(MEZO)
    update = Message(
        kind="update",
        sections={"steps": pairs(seeds=(0, 1, 2**31 - 1, 2, 3))},
        facts={"round": 1, "examples": 3},
    )
    assert mode.add(mode.start(), mode.zero(mode.start()), "ann", update).pairs["ann"]


@BOTH
def test_a_message_of_another_kind_is_refused(exchange: dict[str, Any]) -> None:
    mode, (ann, _) = built(exchange)
    state = mode.start()
    task = mode.task(state, "ann")
    with pytest.raises(MessageError, match="message is 'update'"):
        conversation.alone(mode.work(replace(task, kind="update"), ann, ClientState()))
    update = Message(kind="task", sections={"steps": pairs()}, facts={"round": 1, "examples": 3})
    with pytest.raises(MessageError, match="message is 'task'"):
        mode.add(state, mode.zero(state), "ann", update)


def lied(exchange: dict[str, Any], why: str, facts: Any = None, **sections: Section) -> None:
    """Hold that a client refuses a task with these sections, to train and to test."""
    mode, (ann, _) = built(exchange)
    task = mode.task(mode.start(), "ann")
    lie = replace(
        task, sections={**task.sections, **sections}, facts={**task.facts, **(facts or {})}
    )
    for begin in (mode.work, mode.probe):
        with pytest.raises(MessageError, match=why):
            conversation.alone(begin(lie, ann, ClientState()))


@BOTH
def test_a_client_whose_start_is_another_refuses_to_rebuild(exchange: dict[str, Any]) -> None:
    lied(exchange, "other numbers here than at the server", facts={"start": "0" * 64})
    lied(exchange, "fact 'start' must be a str", facts={"start": 3})


def dense(count: int, value: float, kind: Any = "seeds") -> Section:
    return Section(kind=kind, tensors={"scalars": torch.full((count,), value)})


def test_a_task_of_fedkseed_that_is_none_is_refused() -> None:
    lied(KSEED, r"shape is \[9\], expected \[8\]", steps=dense(9, 0.0))
    lied(KSEED, "scalar nan", steps=dense(8, NAN))
    lied(KSEED, "scalar 1e\\+06; none is beyond 502152", steps=dense(8, 1e6))
    lied(KSEED, "is of kind 'dense', expected 'seeds'", steps=dense(8, 0.0, "dense"))
    lied(KSEED, "has section 'probabilities'", probabilities=dense(8, 0.0, "dense"))
    pro = {**KSEED, "probabilities": True}
    for p in ([-0.5, *[1.0] * 7], [0.0] * 8, [NAN, *[1.0] * 7], [INFINITE, *[1.0] * 7]):
        section = Section(kind="dense", tensors={"probabilities": torch.tensor(p)})
        lied(pro, "must hold numbers from 0 on, not all 0", probabilities=section)


def test_a_log_that_is_none_is_refused() -> None:
    lied(MEZO, "scalar nan", steps=pairs(scalars=(NAN,) * 5))
    lied(MEZO, "seed -1, below 0", steps=pairs(seeds=(-1,) * 5))
    lied(MEZO, "lacks tensor 'seeds'", steps=dense(5, 0.0))
    lied(MEZO, r"holds int64, expected int32", steps=pairs(whole=torch.int64))
    mode, (ann, _) = built(MEZO)
    task = replace(mode.task(mode.start(), "ann"), sections={})
    with pytest.raises(MessageError, match="lacks section 'steps'"):
        conversation.alone(mode.work(task, ann, ClientState()))


def test_a_loss_that_is_no_number_names_client_round_and_step() -> None:
    mode, (ann, _) = built(MEZO)
    plain = ann.body.objective.loss
    ann.body.objective = replace(
        ann.body.objective,
        loss=lambda z, batch: plain(z, batch) * (NAN if len(batch.ids) == 2 else 1),
    )
    short = next(i for i, b in enumerate(ours.batches(ann)) if len(b.ids) == 2)
    why = rf"slope of nan, beyond 4096, at client 'ann', round 1, step {short}; lower params\.exch"
    with pytest.raises(TrainingError, match=why):
        tiny.play(mode, ann.job, [ann], rounds=1)


# --- the job ----------------------------------------------------------------------------------


def job(exchange: str, more: str = "") -> Job:
    return parse(f"[params]\nexchange = {exchange}\n{more}")


def test_an_exchange_is_a_name_or_a_table() -> None:
    assert job('"tensors"').params.exchange is None
    plain = job('"fedkseed"').params.exchange
    assert (plain.name, plain.seeds, plain.steps, plain.probabilities) == (
        "fedkseed", 4096, 200, False,
    )  # fmt: skip
    more = job('{name = "fedkseed", seeds = 7, steps = 3, epsilon = 1e-2, probabilities = true}')
    assert more.params.exchange.seeds == 7
    assert more.params.exchange.epsilon == 0.01
    assert job('{name = "fedmezo", steps = 3}').params.exchange.steps == 3


@pytest.mark.parametrize(
    ("exchange", "why"),
    [
        ('"krum"', r"params\.exchange\.name: input should be 'fedkseed' or 'fedmezo', got 'krum'"),
        (
            '{name = "fedkseed", steps = 0}',
            r"params\.exchange\.steps: .*greater than or equal to 1",
        ),
        ('{name = "fedkseed", stpes = 3}', r"unknown key 'params\.exchange\.stpes'"),
        ('{name = "fedkseed", lr = 0}', r"params\.exchange\.lr: .*greater than 0"),
        ('{name = "fedkseed", seeds = 2000000}', r"less than or equal to 1048576"),
        ('{name = "fedmezo", seeds = 4}', r'params\.exchange seeds is an option of "fedkseed"'),
        ('"fedkseed"\nserver_lr = 0.5', r"params\.server_lr works on tensors, .* leave one"),
        ('"fedkseed"\naggregate = "mean"', r"params\.aggregate works on tensors"),
    ],
)
def test_an_exchange_that_cannot_be_meant_is_refused_as_the_job_is_read(
    exchange: str, why: str
) -> None:
    with pytest.raises(JobError, match=why):
        job(exchange)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('[train]\nschedule = "cosine"', "set train.schedule to 'constant', not 'cosine'"),
        ("[train]\nweight_decay = 0.1", "set train.weight_decay to 0.0, not 0.1"),
        ("[train]\nmax_grad_norm = 1", "set train.max_grad_norm to 0.0, not 1.0"),
        ("[clients.each.ann]\nrank = 4", "different ranks"),
    ],
)
def test_what_tensors_could_not_be_rebuilt_under_is_refused_for_params_only(
    more: str, why: str
) -> None:
    for exchange in ('"fedkseed"', '"fedmezo"'):
        found = unsupported(job(exchange, more), "params")
        assert found is not None
        assert why in found
    if "clients" not in more:
        assert unsupported(job('"tensors"', more), "params") is None
        assert unsupported(job('"fedkseed"', more), "split") is None


def test_an_adapter_to_start_from_reaches_no_site_where_seeds_travel() -> None:
    more = '[adapter]\nstart = "ours"'
    assert "sends them scalars along" in (unfederated(job('"fedkseed"', more), "params") or "")
    assert unfederated(job('"tensors"', more), "params") is None
    assert unfederated(job('"fedkseed"', more), "split") is None


def test_a_mode_is_built_of_what_the_job_says() -> None:
    mode, (ann, _) = built(KSEED)
    assert type(mode).__name__ == "FedKSeed"
    plain = tiny.worker("ann", tiny.job("params"), ann.body, ann.train)
    assert isinstance(Params.build(tiny.setting("params", plain)), Params)
