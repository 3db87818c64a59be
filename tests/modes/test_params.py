"""Parameter exchange is plain training where there is one client, and the mean of it elsewhere."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.aggregate.mean import Mean
from triskel.aggregate.server_optimizer import Momentum
from triskel.errors import MessageError
from triskel.modes.params.mode import Params, ParamsState
from triskel.modes.params.spec import SPEC
from triskel.training import conversation
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import ClientState, Message, Tensors
from triskel.wire import payload_bytes
from triskel.wire.adapters import adapter_sections

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))


def server(worker: Worker) -> Params[Any]:
    """The mode whose clients are like this one."""
    body, options = worker.body, SPEC.of(worker.job)
    return Params(
        initial=body.initial,
        layout=body.layout,
        aggregate=Mean(),
        optimizer=Momentum(lr=options.server_lr, momentum=options.server_momentum),
    )


def alone(family: str = "llama", task: str = "classify", **sections: object) -> Worker:
    """A client with eight texts."""
    job = tiny.job("params", task, **sections)
    return tiny.worker("ann", job, tiny.body(family, job), tiny.examples(8, task))


def pair(**sections: object) -> tuple[Worker, Worker]:
    """Two clients of one model with unequal numbers of texts."""
    ann = alone(**sections)
    return ann, tiny.worker("bob", ann.job, ann.body, tiny.examples(5, seed=9))


def trained(worker: Worker, start: Tensors, round_: int = 1) -> dict[str, torch.Tensor]:
    """What a plain loop makes of the same batches."""
    plain = tiny.Plain("llama", worker.job).load(start)
    batches = worker.batches(StepId(worker.client, round_), worker.job.train.epochs)
    return plain.train(batches, worker.job.train.lr).now()


def update(worker: Worker, state: ParamsState) -> Message:
    """What a client answers to the task of this state."""
    mode = server(worker)
    return conversation.alone(mode.work(mode.task(state, worker.client), worker, ClientState()))[0]


def sent(message: Message) -> dict[str, torch.Tensor]:
    """All tensors of a message."""
    return {n: t for s in message.sections.values() for n, t in s.tensors.items()}


@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_one_client_and_one_round_are_plain_training_bit_for_bit(family: str, task: str) -> None:
    ann = alone(family, task, train={"epochs": 2, "weight_decay": 0.1})
    start = ann.body.initial
    batches = list(ann.batches(StepId("ann", 1), 2))
    assert sorted(len(b.ids) for b in batches) == [2, 2, 3, 3, 3, 3]
    plain = tiny.Plain(family, ann.job).load(start)
    wanted = plain.train(batches, 0.01, weight_decay=0.1).now()
    state, _ = tiny.play(server(ann), ann.job, [ann])
    assert tiny.equal(state.adapter, wanted)
    assert all(not torch.equal(state.adapter[n], start[n]) for n in wanted)


@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_the_masked_kernel_of_transformers_leads_to_the_same_training(
    family: str, task: str
) -> None:
    options = {"attention": "sdpa", "dtype": torch.float64}
    job = tiny.job("params", task)
    ann = tiny.worker("ann", job, tiny.body(family, job, **options), tiny.examples(8, task))
    plain = tiny.Plain(family, job, **options).load(ann.body.initial)
    wanted = plain.train(ann.batches(StepId("ann", 1), 1), 0.01).now()
    state, _ = tiny.play(server(ann), job, [ann])
    assert tiny.apart(state.adapter, wanted) < 1e-7


def test_three_rounds_are_three_plain_trainings_with_the_schedule_by_hand() -> None:
    ann = alone(rounds=3, train={"schedule": "linear", "lr": 0.03})
    plain = tiny.Plain("llama", ann.job).load(ann.body.initial)
    for round_, rate in ((1, 0.03), (2, 0.03 * (1 - 1 / 3)), (3, 0.03 * (1 - 2 / 3))):
        plain.train(ann.batches(StepId("ann", round_), 1), rate)
    state, _ = tiny.play(server(ann), ann.job, [ann])
    assert state.closed == 3
    assert tiny.equal(state.adapter, plain.now())


def test_two_clients_are_averaged_by_their_examples_head_included() -> None:
    ann, bob = pair()
    first, second = (trained(w, ann.body.initial) for w in (ann, bob))
    wanted = {n: (8 * first[n].double() + 5 * second[n].double()) / 13 for n in first}
    state, _ = tiny.play(server(ann), ann.job, [ann, bob])
    assert tiny.apart(state.adapter, wanted) < 1e-7
    (head,) = ann.body.layout.head
    assert tiny.apart({head: state.adapter[head]}, {head: wanted[head]}) < 1e-7
    assert not torch.equal(state.adapter[head], ann.body.initial[head])


def test_the_order_of_clients_does_not_matter() -> None:
    ann, bob = pair()
    mode, state = server(ann), server(ann).start()
    updates = {"ann": update(ann, state), "bob": update(bob, state)}
    closed = []
    for order in (("ann", "bob"), ("bob", "ann")):
        total = mode.zero(state)
        for client in order:
            total = mode.add(state, total, client, updates[client])
        closed.append(mode.close(state, total).adapter)
    assert tiny.equal(*closed)


def test_a_client_starts_from_the_task_whoever_trained_before_it() -> None:
    ann, bob = pair()
    state = server(ann).start()
    fresh = sent(update(bob, state))
    update(ann, state)
    assert tiny.equal(sent(update(bob, state)), fresh)
    assert tiny.equal(fresh, trained(bob, ann.body.initial))


def test_training_leaves_state_and_first_tensors_as_they_were() -> None:
    ann, bob = pair(rounds=2)
    before = {n: t.clone() for n, t in ann.body.initial.items()}
    mode = server(ann)
    first, _ = tiny.play(mode, ann.job, [ann, bob], rounds=1)
    kept = {n: t.clone() for n, t in first.adapter.items()}
    tiny.play(mode, ann.job, [ann, bob], state=first, rounds=1)
    assert tiny.equal(first.adapter, kept)
    assert tiny.equal(ann.body.initial, before)
    assert tiny.equal(mode.start().adapter, before)


def test_the_update_of_a_client_says_how_many_examples_and_what_loss() -> None:
    ann = alone(train={"epochs": 2})
    plain = tiny.Plain("llama", ann.job).load(ann.body.initial)
    adam = torch.optim.AdamW(plain.parameters().values(), lr=0.01, weight_decay=0, fused=True)
    losses = []
    for batch in ann.batches(StepId("ann", 1), 2):
        adam.zero_grad()
        loss = plain.loss(batch)
        loss.backward()
        losses.append(loss.item())
        adam.step()
    found = update(ann, server(ann).start())
    assert found.facts["examples"] == 8
    assert found.facts["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    seen: list[float] = []
    told = tiny.worker(
        "ann", ann.job, ann.body, ann.train, watch=lambda event: seen.append(event["loss"])
    )
    update(told, server(ann).start())
    assert seen == pytest.approx(losses, abs=1e-6)


def folded(
    mode: Params[Any], state: ParamsState, updates: dict[str, tuple[int, Tensors]]
) -> ParamsState:
    """The state after a round with these updates."""
    total = mode.zero(state)
    for client, (count, tensors) in updates.items():
        message = Message(
            kind="update",
            sections=adapter_sections(tensors, mode.layout),
            facts={"round": state.closed + 1, "examples": count, "loss": 0.0},
        )
        total = mode.add(state, total, client, message)
    return mode.close(state, total)


@pytest.mark.parametrize(("rate", "beta"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.9), (0.3, 0.5)])
def test_the_server_steps_by_its_rate_and_momentum(rate: float, beta: float) -> None:
    ann = alone(rounds=3, params={"server_lr": rate, "server_momentum": beta})
    mode = server(ann)
    state = mode.start()
    theta = {n: t.double() for n, t in state.adapter.items()}
    velocity = {n: torch.zeros_like(t) for n, t in theta.items()}
    for seed in (1, 3, 5):
        ups = {
            c: (k, tiny.random_like(state.adapter, seed + k)) for c, k in (("ann", 1), ("bob", 3))
        }
        state = folded(mode, state, ups)
        means = {n: (ups["ann"][1][n].double() + 3 * ups["bob"][1][n].double()) / 4 for n in theta}
        velocity = {n: beta * v + (means[n] - theta[n]) for n, v in velocity.items()}
        theta = {n: w + rate * velocity[n] for n, w in theta.items()}
        assert tiny.apart(state.adapter, theta) < 1e-6
    assert bool(state.moments) == (beta > 0)


def test_one_update_comes_back_bit_for_bit_from_the_plain_server() -> None:
    mode = server(alone())
    theirs = tiny.random_like(mode.initial, 1)
    assert tiny.equal(folded(mode, mode.start(), {"ann": (7, theirs)}).adapter, theirs)


@pytest.mark.parametrize(("family", "task"), tiny.JOINED)
def test_the_payload_is_the_factors_and_the_head(family: str, task: str) -> None:
    ann = alone(family, task)
    width, rank = 16, 2
    outs = {"llama": (16, 8), "gpt2": (48,), "bert": (16, 16)}[family]
    factors = 4 * tiny.LAYERS * sum(rank * (width + out) for out in outs)
    head = 4 * tiny.CLASSES * width + (4 * tiny.CLASSES if family == "bert" else 0)
    task_message = server(ann).task(server(ann).start(), "ann")
    for message in (task_message, update(ann, server(ann).start())):
        sizes = {name: payload_bytes(s) for name, s in message.sections.items()}
        assert sizes == {"adapter": factors} | ({"head": head} if task == "classify" else {})


def test_only_the_chosen_blocks_train() -> None:
    ann = alone(adapter={"blocks": "top:1"})
    assert {ann.body.layout.block[n] for n in ann.body.layout.block} == {tiny.LAYERS - 1}
    plain = tiny.Plain("llama", ann.job, blocks=[tiny.LAYERS - 1]).load(ann.body.initial)
    wanted = plain.train(ann.batches(StepId("ann", 1), 1), 0.01).now()
    assert tiny.equal(sent(update(ann, server(ann).start())), wanted)


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    ann = alone(train={"max_grad_norm": 0.01})
    start = tiny.random_like(ann.body.initial, 1)
    plain = tiny.Plain("llama", ann.job).load(start)
    adam = torch.optim.AdamW(plain.parameters().values(), lr=0.01, weight_decay=0, fused=True)
    for batch in ann.batches(StepId("ann", 1), 1):
        adam.zero_grad()
        plain.loss(batch).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters().values(), 0.01)
        assert float(norm) > 0.01
        adam.step()
    found = sent(update(ann, ParamsState(adapter=start)))
    assert tiny.apart(found, plain.now()) < 1e-6


def test_dropout_is_a_function_of_names_alone() -> None:
    ann, bob = pair(adapter={"dropout": 0.5})
    state = ParamsState(adapter=tiny.random_like(ann.body.initial, 1))
    torch.manual_seed(1)
    first = sent(update(ann, state))
    torch.manual_seed(2)
    update(bob, state)
    assert tiny.equal(sent(update(ann, state)), first)
    own = tiny.worker("ann", ann.job, tiny.body("llama", ann.job), ann.train)
    assert tiny.equal(sent(update(own, state)), first), "its own copy of the model"
    steady, _ = pair()
    assert not tiny.equal(sent(update(steady, state)), first)
    with torch.no_grad():
        batch = ann.batch(ann.train, [0, 1])
        leaves = ann.body.parameters(state.adapter)
        assert torch.equal(ann.body.logits(leaves, batch), ann.body.logits(leaves, batch))


def test_an_update_without_examples_is_refused() -> None:
    mode = server(alone())
    with pytest.raises(Exception, match="'examples' must be a number of at least 1, got 0"):
        folded(mode, mode.start(), {"ann": (0, mode.initial)})


@pytest.mark.parametrize("facts", [{"scale": 2.9}, {}, {"scale": 3.0, "more": 1}])
def test_factors_of_another_scale_are_refused(facts: dict[str, float]) -> None:
    ann = alone()
    mode = server(ann)
    message = mode.task(mode.start(), "ann")
    other = replace(message.sections["adapter"], facts=facts)
    lying = replace(message, sections={**message.sections, "adapter": other})
    with pytest.raises(MessageError, match=r"'adapter' is lowrank with .*expected lowrank with"):
        conversation.alone(mode.work(lying, ann, ClientState()))
