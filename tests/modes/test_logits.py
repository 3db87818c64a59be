"""Prediction exchange: what is learnt from whom, on which texts, against plain loops."""

import math
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triskel.core.mode_spec import Sizes
from triskel.data.batches import batch_of
from triskel.errors import MessageError, RoundError, TrainingError
from triskel.modes.logits.knowledge import Knowledge, dense, top
from triskel.modes.logits.losses import distil_loss
from triskel.modes.logits.messages import knowledge_message, read_knowledge
from triskel.modes.logits.mode import Logits, LogitsState
from triskel.modes.logits.spec import SPEC, LogitsOptions
from triskel.modes.logits.teach import predict
from triskel.training.conversation import alone
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import ClientState, Examples, Message
from triskel.wire import pack, unpack
from triskel.wire.ledger import Ledger

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
WIDE = {"dtype": torch.float64, "wide": True}
Rows = Callable[[Sequence[int]], Tensor]


def federation(
    task: str = "classify",
    *,
    counts: Mapping[str, int] | None = None,
    texts: int = 7,
    **sections: Any,  # noqa: ANN401 - of the job
) -> tuple[Logits, list[Worker]]:
    """A server and clients of one model, with public texts of mixed lengths."""
    job = tiny.job("logits", task, **sections)
    body = tiny.body("llama", job, **WIDE)
    public = tiny.examples(texts, task, seed=50, long=11)
    if task == "classify":
        public = tiny.relabelled(public, [-1] * texts)

    def party(name: str, train: Examples) -> Worker:
        return tiny.worker(name, job, body, train, public=public)

    counts = {"ann": 8, "bob": 5} if counts is None else counts
    workers = [party(n, tiny.examples(k, task, seed=k)) for n, k in counts.items()]
    nothing = tiny.worker("x", job, body, replace(public, ids=(), labels=(), scored=()))
    server = replace(nothing, client="server", public=public)
    return Logits(server=server, options=job.logits), workers


def starts(workers: Sequence[Worker], seed: int = 1) -> dict[str, ClientState]:
    """Client states of which no factor is zero."""
    return {
        w.client: ClientState(groups={"own": tiny.random_like(w.body.initial, seed + i)})
        for i, w in enumerate(workers)
    }


def softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logits.double() / temperature, -1)


# --- the plain thing --------------------------------------------------------------------------


def positions(public: Examples) -> list[tuple[int, int]]:
    """Text and place of every prediction, in the order of the public set."""
    if not public.scored:
        return [(i, 0) for i in range(len(public))]
    return [(i, int(j)) for i, s in enumerate(public.scored) for j in s.nonzero().flatten()]


def predictions(plain: Any, public: Examples) -> Tensor:  # noqa: ANN401 - a Plain
    """Logits on every public text, one text at a time."""
    with torch.no_grad():
        return torch.cat([plain.logits(batch_of(public, [i])) for i in range(len(public))])


def shortened(p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, and the row with the rest spread evenly over what is not named."""
    ids = p.topk(k, dim=-1).indices
    named = torch.zeros_like(p).scatter(1, ids, 1.0).bool()
    rest = (1 - (p * named).sum(-1, keepdim=True)) / (p.shape[1] - k)
    return ids, torch.where(named, p, rest)


def divergence(teacher: Tensor, student: Tensor, ids: Tensor | None, temperature: float) -> Tensor:
    """τ² KL, mean over positions; with ids, over these tokens and all others as one outcome."""
    p, q = teacher, softmax(student, temperature)
    if ids is not None:
        p, q = (
            torch.cat([x.gather(1, ids), 1 - x.gather(1, ids).sum(-1, keepdim=True)], 1)
            for x in (p, q)
        )
    return temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()


def distilled(
    plain: Any,  # noqa: ANN401 - a Plain
    worker: Worker,
    teacher: Tensor,
    ids: Tensor | None,
    *,
    mix: float,
    round_: int = 1,
) -> None:
    """Learn from the teacher, looking every prediction up by its text and place."""
    options, place = worker.job.logits, {x: i for i, x in enumerate(positions(worker.public))}
    where = StepId(worker.client, round_, "distil")
    rehearsal: list[Any] = []
    for epoch in range(50):
        rehearsal += worker.batches(replace(where, phase=f"rehearse-{epoch}"), 1)
    adam = torch.optim.AdamW(plain.parameters().values(), lr=worker.job.train.lr, weight_decay=0)
    for step, rows in enumerate(worker.plan(worker.public, where, options.epochs)):
        keys = [(r, j) for r in rows for i, j in positions(worker.public) if i == r]
        at = torch.tensor([place[key] for key in keys])
        logits = plain.logits(batch_of(worker.public, rows))
        named = None if ids is None else ids[at]
        loss = mix * divergence(teacher[at], logits, named, options.temperature)
        if mix < 1 and len(worker.train):
            loss = loss + (1 - mix) * plain.loss(rehearsal[step])
        adam.zero_grad()
        loss.backward()
        adam.step()


def plain_round(
    mode: Logits,
    workers: Sequence[Worker],
    client_states: Mapping[str, ClientState],
    student: Any,  # noqa: ANN401 - tensors
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """One round with the probabilities averaged: the clients' tensors and the student's."""
    job = mode.server.job
    options, causal = job.logits, job.data.task == "causal"
    few = causal or options.top_k < tiny.CLASSES
    plains = {w.client: tiny.Plain("llama", job, **WIDE) for w in workers}
    said = []
    for worker in workers:
        plain = plains[worker.client].load(client_states[worker.client].groups["own"])
        plain.train(worker.batches(StepId(worker.client, 1), job.train.epochs), job.train.lr)
        p = softmax(predictions(plain, worker.public), options.temperature)
        said.append(shortened(p, options.top_k)[1] if few else p)
    mean, ids = sum(said[1:], said[0]) / len(said), None
    if few:
        ids = mean.topk(options.top_k, dim=-1).indices
    for worker in workers:
        distilled(plains[worker.client], worker, mean, ids, mix=options.mix)
    pupil = tiny.Plain("llama", job, **WIDE).load(student)
    distilled(pupil, mode.server, mean, ids, mix=1.0)
    return {c: p.now() for c, p in plains.items()}, pupil.now()


# --- a whole round ----------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("task", "k"), [("classify", 5), ("classify", 2), ("causal", 5)])
def test_a_round_is_training_exchange_and_distillation_written_out(
    task: str, k: int, mix: float
) -> None:
    options = {"mix": mix, "temperature": 1.7, "top_k": k, "epochs": 2}
    mode, workers = federation(task, logits=options)
    mine, student = starts(workers), tiny.random_like(mode.server.body.initial, 9)
    state, found = tiny.play(
        mode, mode.server.job, workers, client_states=mine, state=LogitsState(student=student)
    )
    wanted, pupil = plain_round(mode, workers, mine, student)
    for worker in workers:
        start = mine[worker.client].groups["own"]
        end = found[worker.client].groups["own"]
        change = {n: end[n] - start[n] for n in start}
        by_hand = {n: wanted[worker.client][n] - start[n] for n in start}
        assert tiny.apart(change, by_hand) < 1e-5
    change = {n: state.student[n] - student[n] for n in student}
    assert tiny.apart(change, {n: pupil[n] - student[n] for n in student}) < 1e-5
    assert state.closed == 1
    assert state.teacher is None


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_predictions_come_in_the_order_of_the_public_set(task: str) -> None:
    _, (ann, _) = federation(task, logits={"top_k": 37})
    lengths = [len(ids) for ids in ann.public.ids]
    assert lengths != sorted(lengths), "batches are sorted by length, and the answer must not be"
    tensors = tiny.random_like(ann.body.initial, 1)
    known = predict(ann, ann.body.parameters(tensors), ann.job.logits)
    wanted = predictions(tiny.Plain("llama", ann.job, **WIDE).load(tensors), ann.public)
    p = softmax(wanted, 2.0)
    if task == "classify":
        torch.testing.assert_close(known.values.double(), wanted, rtol=1e-5, atol=1e-6)
        return
    assert len(positions(ann.public)) == len(known.values)
    back = torch.zeros_like(p).scatter(1, known.ids, (known.values.double() / 2).exp())
    torch.testing.assert_close(back, p, rtol=1e-5, atol=1e-6)


def test_the_student_comes_nearer_to_the_teacher() -> None:
    mode, workers = federation(logits={"epochs": 8}, train={"lr": 0.01})
    seen: list[Knowledge] = []

    class Watched(Logits):
        def close(self, state: LogitsState, total: int) -> LogitsState:
            assert state.teacher is not None
            seen.append(state.teacher)
            return super().close(state, total)

    student = tiny.random_like(mode.server.body.initial, 9)
    state, _ = tiny.play(
        Watched(server=mode.server, options=mode.options),
        mode.server.job,
        workers,
        client_states=starts(workers),
        state=LogitsState(student=student),
    )
    plain = tiny.Plain("llama", mode.server.job, **WIDE)
    teacher = softmax(seen[0].values, 2.0)
    far, near = (
        divergence(teacher, predictions(plain.load(t), mode.server.public), None, 2.0).item()
        for t in (student, state.student)
    )
    assert near < far / 4


# --- the loss ---------------------------------------------------------------------------------


def logits(seed: int, classes: int = 9) -> Tensor:
    return 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_a_teacher_that_equals_the_student_teaches_nothing(temperature: float) -> None:
    student = logits(0).requires_grad_()
    for teacher in (
        dense(student.detach()),
        dense(student.detach() + 5.0),
        top(student.detach(), 3, temperature),
        top(student.detach(), 9, temperature),
    ):
        loss = distil_loss(student, teacher, temperature)
        (slope,) = torch.autograd.grad(loss, student)
        assert abs(loss.item()) < 1e-6
        assert float(slope.abs().max()) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("k", [None, 1, 3, 8])
def test_the_loss_and_its_gradient_are_the_formula(k: int | None, temperature: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    known = dense(teacher) if k is None else top(teacher, k, temperature)
    p = softmax(teacher, temperature)
    ids = None if k is None else p.topk(k, dim=-1).indices
    wanted = divergence(p, student, ids, temperature)
    found = distil_loss(student, known, temperature)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    slope, by_hand = (torch.autograd.grad(x, student)[0] for x in (found, wanted))
    torch.testing.assert_close(slope, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gap", [10.0, 20.0, 28.0, 40.0])
def test_a_sure_student_gets_the_gradient_of_the_formula(gap: float) -> None:
    teacher = logits(1, classes=50) + torch.tensor([24.0] * 4 + [0.0] * 46)
    student = logits(0, classes=50) + torch.tensor([gap] * 4 + [0.0] * 46)
    known = top(teacher, 4, 1.0)

    def by_hand(student: Tensor) -> Tensor:
        z, t = student.double(), teacher.double()
        parts = []
        for x in (t, z):
            rest = x[:, 4:].logsumexp(1) - x.logsumexp(1)
            parts.append(torch.cat([x.log_softmax(1)[:, :4], rest[:, None]], 1))
        target, own = parts
        return (target.exp() * (target - own)).sum(1).mean()

    slopes = []
    for loss in (lambda z: distil_loss(z, known, 1.0), by_hand):
        z = student.clone().requires_grad_()
        slopes.append(torch.autograd.grad(loss(z), z)[0].double())
    assert {tuple(sorted(row)) for row in known.ids.tolist()} == {(0, 1, 2, 3)}
    assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < 1e-5
    others = [slope[:, 4:] for slope in slopes]
    assert float((others[0] - others[1]).norm() / others[1].norm()) < 1e-4


def test_temperature_leaves_the_size_of_gradients_about_the_same() -> None:
    student, teacher = (logits(i) / 30 for i in (0, 1))
    student.requires_grad_()
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        loss = distil_loss(student, dense(teacher), temperature)
        sizes.append(float(torch.autograd.grad(loss, student)[0].norm()))
    assert max(sizes) < 1.1 * min(sizes)


# --- what is used, kept and sent --------------------------------------------------------------


def ends(mode: Logits, workers: Sequence[Worker], **options: Any) -> list[Mapping[str, Tensor]]:  # noqa: ANN401 - of `tiny.play`
    """Everybody's tensors at the end."""
    state, mine = tiny.play(mode, mode.server.job, workers, **options)
    return [state.student, *(mine[c].groups["own"] for c in sorted(mine))]


def test_labels_of_public_texts_are_never_used() -> None:
    mode, workers = federation()
    told = tiny.relabelled(mode.server.public, [0, 1, 2, 0, 1, 2, 0])
    first = ends(mode, workers)
    taught = replace(mode, server=replace(mode.server, public=told))
    again = ends(taught, [replace(w, public=told) for w in workers])
    assert all(tiny.equal(x, y) for x, y in zip(first, again, strict=True))


def test_a_client_goes_on_from_what_it_kept() -> None:
    mode, workers = federation(rounds=2)
    whole = ends(mode, workers)
    state, mine = tiny.play(mode, mode.server.job, workers, rounds=1)
    assert set(mine) == {"ann", "bob"}
    halves = ends(mode, workers, state=state, client_states=mine, rounds=1)
    assert all(tiny.equal(x, y) for x, y in zip(whole, halves, strict=True))
    forgotten = ends(mode, workers, state=state, rounds=1)
    assert not tiny.equal(forgotten[1], halves[1])


def test_the_first_round_starts_from_the_models_own_start() -> None:
    mode, (ann, bob) = federation()
    before = {n: t.clone() for n, t in ann.body.initial.items()}
    first = ends(mode, [ann, bob])
    given = {c: ClientState(groups={"own": before}) for c in ("ann", "bob")}
    again = ends(mode, [ann, bob], client_states=given)
    assert all(tiny.equal(x, y) for x, y in zip(first, again, strict=True))
    assert tiny.equal(ann.body.initial, before)
    assert tiny.equal(given["ann"].groups["own"], before)


def test_a_state_keeps_what_other_groups_hold() -> None:
    mode, workers = federation()
    more = {"more": {"x": torch.ones(2)}}
    mine = {w.client: ClientState(groups=more, facts={"k": 1}) for w in workers}
    _, after = tiny.play(mode, mode.server.job, workers, client_states=mine)
    assert set(after["ann"].groups) == {"own", "more"}
    assert after["ann"].facts == {"k": 1}


def test_a_server_without_a_student_learns_nothing() -> None:
    mode, workers = federation(logits={"student": False})
    state, mine = tiny.play(mode, mode.server.job, workers)
    assert tiny.equal(state.student, mode.server.body.initial)
    assert not tiny.equal(mine["ann"].groups["own"], mode.server.body.initial)


def test_clients_may_have_different_models_and_ranks() -> None:
    mode, (ann, bob) = federation(rounds=2)
    wider = ann.job.model_copy(update={"adapter": ann.job.adapter.model_copy(update={"rank": 3})})
    bodies = {"ann": tiny.body("gpt2", ann.job, **WIDE), "bob": tiny.body("bert", wider, **WIDE)}
    workers = [replace(w, body=bodies[w.client]) for w in (ann, bob)]
    state, mine = tiny.play(mode, mode.server.job, workers)
    for client, body in bodies.items():
        own = mine[client].groups["own"]
        assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in body.initial.items()}
        assert any(not torch.equal(own[n], body.initial[n]) for n in own)
    assert not tiny.equal(state.student, mode.server.body.initial)


def test_models_of_one_tokenizer_may_have_heads_of_different_lengths() -> None:
    """As Qwen2.5-0.5B with 151,936 rows and -7B with 152,064 do, for the same 151,665 tokens."""
    mode, (ann, bob) = federation("causal", rounds=2, logits={"top_k": 5, "mix": 1.0})
    longer = tiny.body("llama", ann.job, **WIDE, vocab_size=tiny.VOCABULARY + 3)
    padded = longer.blocks.head.weight[tiny.VOCABULARY :]
    padded.copy_(9.0 * padded.sign())  # what is there would win
    known = predict(replace(ann, body=longer), longer.parameters(longer.initial), ann.job.logits)
    assert int(known.ids.max()) < tiny.VOCABULARY
    whole = tiny.model("llama", "causal", **WIDE, vocab_size=tiny.VOCABULARY + 3)
    whole.lm_head.weight.data[tiny.VOCABULARY :] = padded
    rows = []
    for i in range(len(ann.public)):
        batch = batch_of(ann.public, [i])
        out = whole(**tiny.called_with(batch, 0)).logits[batch.rows, batch.columns]
        rows.append(out[:, : tiny.VOCABULARY].detach())
    p = softmax(torch.cat(rows), 2.0)
    torch.testing.assert_close((known.values.double() / 2).exp(), p.gather(1, known.ids))
    torch.testing.assert_close(
        (known.tail.double() / 2).exp(), 1 - p.gather(1, known.ids).sum(1), rtol=1e-5, atol=1e-7
    )
    short = tiny.body("llama", ann.job, **WIDE)
    for server, client in ((short, longer), (longer, short)):
        workers = [replace(ann, body=client), replace(bob, body=short)]
        state, mine = tiny.play(
            replace(mode, server=replace(mode.server, body=server)), mode.server.job, workers
        )
        assert set(mine) == {"ann", "bob"}
        assert not tiny.equal(state.student, server.initial)


def test_what_a_head_is_padded_with_is_not_taught() -> None:
    student = torch.cat([logits(0), logits(2)], dim=1).requires_grad_()
    for teacher in (dense(logits(1)), top(logits(1), 3, 2.0)):
        loss = distil_loss(student, teacher, 2.0)
        assert loss.item() == distil_loss(logits(0), teacher, 2.0).item()
        (slope,) = torch.autograd.grad(loss, student)
        assert not slope[:, 9:].any()
        assert bool(slope[:, :9].any())


def test_a_pooled_token_is_chosen_by_each_models_own_family() -> None:
    _, (ann, _) = federation()
    bert = replace(ann, body=tiny.body("bert", ann.job, **WIDE))
    tensors = tiny.random_like(bert.body.initial, 1)
    found = predict(bert, bert.body.parameters(tensors), ann.job.logits).values
    wanted = predictions(tiny.Plain("bert", ann.job, **WIDE).load(tensors), ann.public)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize("values", ["floats", "bytes"])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_only_predictions_cross(task: str, k: int, values: str) -> None:
    """As many bytes as the closed form has: of three classes two are named, or all."""
    mode, workers = federation(task, logits={"top_k": k, "values": values})
    ledger = Ledger()
    tiny.play(mode, mode.server.job, workers, ledger=ledger)
    spots = len(positions(mode.server.public))
    a_number, rest = (4, 4) if values == "floats" else (1, 2)
    size = spots * (k * (a_number + 1) + rest)
    if task == "classify" and k >= tiny.CLASSES:
        size = spots * (tiny.CLASSES * a_number + (2 if values == "bytes" else 0))
    whole = {"classes": tiny.CLASSES} if task == "classify" else {"vocabulary": tiny.VOCABULARY}
    told = SPEC.payload(mode.options, 1, Sizes(public=spots, **whole))
    assert 4 * told.floats + told.fixed_bytes == size
    for account in ledger.accounts.values():
        for way in (account.up, account.down):
            assert dict(way.sections) == {"knowledge": size}
            assert way.messages == 2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [None, 1, 5, 40])
def test_bytes_are_within_half_a_step_of_the_largest(k: int | None, temperature: float) -> None:
    """And what is too small for a step is not impossible."""
    options = LogitsOptions(values="bytes", temperature=temperature)
    z = 3 * torch.randn(200, 40, generator=torch.Generator().manual_seed(3))
    z[0], z[1, 1:] = 0.0, -80.0  # all alike, and one that is sure
    known = dense(z) if k is None else top(z, k, temperature)
    message = knowledge_message(known, "ask", 1, options)
    found = read_knowledge(unpack(pack(message)), known, options, kind="ask")
    p = softmax(z, temperature)
    p = p if known.ids is None else p.gather(1, known.ids)
    back = (found.values.double() / temperature).exp()
    step = (p.amax(1, keepdim=True) + 1 / 65_535) / 255
    assert bool(((back - p).abs() <= (step / 2) * (1 + 1e-4)).all())
    assert float(back.min()) > 0
    assert float((back.sum(1) - 1).max()) <= 40 / 510
    assert float(back[1].sum()) <= 1 + 1e-6, "what has no share adds nothing to one that is sure"
    if k is not None:
        assert torch.equal(found.ids, known.ids)
        rest = (found.tail.double() / temperature).exp()
        torch.testing.assert_close(rest, (1 - back.sum(1)).clamp(min=1e-30), rtol=1e-4, atol=1e-6)


def test_bytes_hold_what_is_small_though_all_of_it_is() -> None:
    """Of 50,000 tokens alike each has a share of a peak of two parts in 65,535."""
    options = LogitsOptions(values="bytes", temperature=1.0)
    known = top(torch.zeros(1, 50_000), 4, 1.0)
    found = read_knowledge(knowledge_message(known, "ask", 1, options), known, options, kind="ask")
    p = found.values.double().exp()
    assert float((p - 1 / 50_000).abs().max()) <= 2 / 65_535 / 510
    assert float(found.tail.double().exp()) == pytest.approx(1 - 4 / 50_000, abs=1e-6)


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_clients_that_send_bytes_learn_what_those_that_send_floats_do(task: str) -> None:
    found = []
    for values in ("floats", "bytes"):
        mode, workers = federation(task, logits={"top_k": 2, "values": values, "mix": 0.5})
        _, states = tiny.play(mode, mode.server.job, workers, client_states=starts(workers))
        found.append(states["ann"].groups["own"])
    moved = max(float((found[0][n] - found[1][n]).abs().max()) for n in found[0])
    assert 0 < moved < 0.05


def test_shares_that_are_none_are_refused() -> None:
    mode, (ann, _) = federation("causal", logits={"top_k": 4, "values": "bytes"})
    ask = asked(mode, ann)
    tensors = ask.sections["knowledge"].tensors
    loud = changed(ask, "shares", torch.full_like(tensors["shares"], 255))
    _, answers = mode.answer(mode.start(), {"ann": loud})
    teacher = answers["ann"].sections["knowledge"].tensors
    mass = teacher["shares"].double().sum(1) / 255 * teacher["peak"].double() / 65_535
    assert float(mass.max()) <= 1 + 4 / 510
    for name, wrong in (
        ("peak", torch.zeros_like(tensors["peak"])),
        ("peak", tensors["peak"][:-1]),
        ("shares", tensors["shares"][:, :3]),
        ("shares", tensors["shares"].to(torch.int32)),
    ):
        bad = changed(ask, name, wrong)
        with pytest.raises(MessageError):
            mode.answer(mode.start(), {"ann": unpack(pack(bad))})


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("k", [None, 2])
def test_what_is_no_number_has_no_byte(k: int | None, wrong: float) -> None:
    z = torch.randn(3, 5)
    z[1, 2] = wrong
    known = dense(z) if k is None else top(z, k, 2.0)
    with pytest.raises(MessageError, match="predictions hold NaN or infinity"):
        knowledge_message(known, "ask", 1, LogitsOptions(values="bytes"))


@pytest.mark.parametrize("name", ["logits", "probabilities", "confidence"])
def test_the_answer_is_the_average_the_job_names(name: str) -> None:
    mode, workers = federation(logits={"aggregate": name, "temperature": 2.0})
    mine, asks = starts(workers), {}
    for worker in workers:
        talk = mode.work(mode.task(mode.start(), worker.client), worker, mine[worker.client])
        asks[worker.client] = tiny.until_ask(tiny.opened(talk))
    z = [asks[c].sections["knowledge"].tensors["values"].double() for c in ("ann", "bob")]
    p = [softmax(x, 2.0) for x in z]
    if name == "logits":
        wanted = softmax((z[0] + z[1]) / 2, 2.0)
    else:
        trust = [torch.ones(len(x)).double() for x in p]
        if name == "confidence":
            trust = [1 + (x * x.log()).sum(-1) / math.log(3) + 1e-6 for x in p]
        wanted = sum(c[:, None] * x for c, x in zip(trust, p, strict=True)) / sum(trust)[:, None]
    state, answers = mode.answer(mode.start(), asks)
    assert set(answers) == {"ann", "bob"}
    for answer in answers.values():
        found = softmax(answer.sections["knowledge"].tensors["values"], 2.0)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert state.teacher is not None


def test_dropout_is_a_function_of_names_alone() -> None:
    mode, workers = federation(adapter={"dropout": 0.5})
    torch.manual_seed(1)
    first = ends(mode, workers, client_states=starts(workers))
    torch.manual_seed(2)
    again = ends(mode, workers, client_states=starts(workers))
    assert all(tiny.equal(x, y) for x, y in zip(first, again, strict=True))
    steady_mode, steady = federation()
    other = ends(steady_mode, steady, client_states=starts(steady))
    assert all(tiny.apart(x, y) > 1e-4 for x, y in zip(first[1:], other[1:], strict=True))


def test_predictions_are_made_without_dropout() -> None:
    _, (ann, _) = federation(adapter={"dropout": 0.5})
    tensors = ann.body.parameters(tiny.random_like(ann.body.initial, 1))
    ann.body.dropout(None)
    wanted = predict(ann, tensors, ann.job.logits).values
    ann.body.dropout(1)  # as training leaves it
    assert torch.equal(predict(ann, tensors, ann.job.logits).values, wanted)


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_predictions_on_a_large_vocabulary_are_made_some_positions_at_a_time(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (ann, _) = federation(task)
    tensors = ann.body.parameters(tiny.random_like(ann.body.initial, 1))
    wanted, sizes = predict(ann, tensors, ann.job.logits), list[int]()
    classes = len(ann.body.blocks.head.weight)
    monkeypatch.setattr("triskel.model.shared.AT_ONCE", 2 * classes)
    hook = ann.body.blocks.head.register_forward_hook(lambda *x: sizes.append(x[2].numel()))
    found = predict(ann, tensors, ann.job.logits)
    hook.remove()
    assert torch.allclose(found.values, wanted.values, atol=1e-5)
    if task == "causal":
        assert max(sizes) == 2 * classes
        assert found.ids is not None
        assert wanted.ids is not None
        assert torch.equal(found.ids, wanted.ids)


# --- refusals ---------------------------------------------------------------------------------


def test_a_client_with_another_public_set_is_told() -> None:
    mode, (ann, _) = federation()
    short = replace(ann, public=tiny.examples(3))
    with pytest.raises(MessageError, match=r"7 public texts and client 'ann' holds 3"):
        alone(mode.work(mode.task(mode.start(), "ann"), short, ClientState()))


def asked(mode: Logits, worker: Worker) -> Message:
    talk = mode.work(mode.task(mode.start(), worker.client), worker, ClientState())
    found: Message = tiny.until_ask(tiny.opened(talk))
    return found


def changed(message: Message, name: str, value: object, *, fact: bool = False) -> Message:
    section = message.sections["knowledge"]
    section = (
        replace(section, facts={**section.facts, name: value})
        if fact
        else replace(section, tensors={**section.tensors, name: value})
    )
    return replace(message, sections={"knowledge": section})


def test_predictions_of_another_shape_or_vocabulary_are_refused() -> None:
    mode, (ann, _) = federation("causal", logits={"top_k": 4})
    ask = asked(mode, ann)
    tensors = ask.sections["knowledge"].tensors
    beyond = tensors["ids"].clone()
    beyond[0, 0] = tiny.VOCABULARY
    for bad in (
        changed(ask, "values", tensors["values"][:-1]),
        changed(ask, "values", tensors["values"][:, :3]),
        changed(ask, "ids", beyond),
        changed(ask, "vocabulary", 38, fact=True),
        changed(ask, "vocabulary", None, fact=True),
    ):
        with pytest.raises(MessageError):
            mode.answer(mode.start(), {"ann": bad})
    mode.answer(mode.start(), {"ann": ask})


def test_a_token_named_twice_is_refused() -> None:
    mode, (ann, _) = federation("causal", logits={"top_k": 4})
    ask = asked(mode, ann)
    ids = ask.sections["knowledge"].tensors["ids"].clone()
    ids[0] = ids[0, 0]
    with pytest.raises(MessageError):
        mode.answer(mode.start(), {"ann": changed(ask, "ids", ids)})


def test_nobody_counts_for_more_than_one() -> None:
    mode, (ann, bob) = federation("causal", logits={"top_k": 4})
    honest, other = asked(mode, ann), asked(mode, bob)
    tensors = other.sections["knowledge"].tensors
    elsewhere = ((tensors["ids"].int() + 18) % tiny.VOCABULARY).to(tensors["ids"].dtype)
    loud = changed(changed(other, "values", tensors["values"] + 50.0), "ids", elsewhere)
    try:
        _, answers = mode.answer(mode.start(), {"ann": honest, "bob": loud})
    except MessageError:
        return
    own, mean = (m.sections["knowledge"].tensors for m in (honest, answers["ann"]))
    best = (own["values"][:, 0] / 2).exp()
    for row, token in enumerate(own["ids"][:, 0].tolist()):
        at = mean["ids"][row].tolist().index(token)
        assert float((mean["values"][row, at] / 2).exp()) > 0.4 * float(best[row])


def test_a_round_without_predictions_is_no_round() -> None:
    mode, _ = federation()
    with pytest.raises(RoundError, match="no client sent predictions"):
        mode.close(mode.start(), 0)
    with pytest.raises(RoundError, match="no client sent predictions"):
        mode.close(mode.start(), 1)


def test_a_loss_that_is_no_number_names_its_phase() -> None:
    mode, workers = federation()
    body = workers[0].body
    with torch.no_grad():
        norm = body.blocks.model.get_submodule("model.norm")
        assert isinstance(norm, nn.Module)
        norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="client 'ann', round 1, train step 0"):
        tiny.play(mode, mode.server.job, workers)
