"""Every mode keeps the same promises to whoever drives it."""

import dataclasses
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from triskel.aggregate.mean import Mean
from triskel.config.job import MODE_NAMES, Job, ModeName, unsupported
from triskel.core.registry import MODES
from triskel.engines.local import LocalEngine
from triskel.engines.waves import due
from triskel.errors import MessageError, RoundError, TriskelError
from triskel.experiment.rounds import play
from triskel.experiment.stages import stage_of
from triskel.experiment.tokens import Share
from triskel.modes.logits.mode import Logits
from triskel.modes.params.mode import Params
from triskel.modes.split.mode import Split
from triskel.numerics.metrics import Score
from triskel.training.conversation import Sent, alone
from triskel.training.evaluate import evaluate, score_of
from triskel.training.worker import Worker
from triskel.types import ClientState, Message, Mode, Section
from triskel.wire import pack, unpack

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
MAKERS: Mapping[ModeName, Callable[[Worker], Any]] = {
    "params": lambda w: Params(w.body.initial, w.body.layout, aggregate=Mean()),
    "logits": lambda w: Logits(
        server=replace(w, client="server", train=tiny.examples(0)), options=w.job.logits
    ),
    "split": lambda w: Split(setting=tiny.setting("split", w), aggregate=Mean()),
}
CASES = [(name, task) for name in MAKERS for task in ("classify", "causal")]
each = pytest.mark.parametrize(("name", "task"), CASES)


def built(name: str, task: str = "classify", **sections: Any) -> tuple[Any, list[Worker]]:  # noqa: ANN401 - of the job
    """A mode and two clients on one model of four blocks."""
    given = {"rounds": 3, "split": {"cut": (1, 3)}, "logits": {"top_k": 4}, **sections}
    job = tiny.job(name, task, **given)
    body = tiny.body("llama", job)
    public = tiny.examples(4, task, seed=50)

    def party(client: str, count: int) -> Worker:
        train, test = (tiny.examples(count, task, seed=count + i) for i in (0, 7))
        return tiny.worker(client, job, body, train, test=test, public=public)

    workers = [party("ann", 5), party("bob", 4)]
    return MAKERS[name](workers[0]), workers


@dataclass
class Seen:
    """Everything that was said in one round, and what is left of it."""

    tasks: dict[str, Message] = field(default_factory=dict)
    asks: list[dict[str, Message]] = field(default_factory=list)
    answers: list[Mapping[str, Message]] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)
    updates: dict[str, Message] = field(default_factory=dict)
    kept: dict[str, ClientState] = field(default_factory=dict)
    state: Any = None
    open: Any = None

    def everything(self) -> list[Message]:
        waves = [m for wave in (*self.asks, *self.answers) for m in wave.values()]
        return [*self.tasks.values(), *waves, *self.updates.values()]


def same(message: Message) -> Message:
    return message


def drive(
    mode: Mode[Any, Any, Worker],
    state: Any,  # noqa: ANN401 - the mode's own
    workers: Sequence[Worker],
    client_states: Mapping[str, ClientState] | None = None,
    *,
    carry: Callable[[Message], Message] = same,
    probe: bool = False,
) -> Seen:
    """One round without an engine: waves of what is due, then the updates in order."""
    seen = Seen()
    seen.tasks = {w.client: carry(mode.task(state, w.client)) for w in workers}
    begin = mode.probe if probe else mode.work
    talks = {
        w.client: tiny.opened(
            begin(seen.tasks[w.client], w, (client_states or {}).get(w.client, ClientState())),
            w.client,
        )
        for w in workers
    }
    asked: dict[str, dict[int, Message]] = {client: {} for client in talks}
    while talks:
        for client, talk in list(talks.items()):
            while (step := talk.step()) is not None:
                if isinstance(step, Sent):
                    asked[client][step.ticket] = carry(step.ask)
                else:
                    talk.do(step)
            if talk.finished:
                update, seen.kept[client] = talk.hand_over()
                seen.updates[client] = carry(update)
                del talks[client]
        if turn := due(mode.asks, asked, talks.keys()):
            seen.before.append(state)
            asks = {client: asked[client].pop(ticket) for client, ticket in turn.items()}
            state, answers = mode.answer(state, asks)
            seen.asks.append(asks)
            seen.answers.append({c: carry(m) for c, m in answers.items()})
            for client, message in seen.answers[-1].items():
                talks[client].answer(turn[client], message)
    seen.open = state
    if not probe:
        total = mode.zero(state)
        for client, update in seen.updates.items():
            total = mode.add(state, total, client, update)
        state = mode.close(state, total)
    seen.state = state
    return seen


def tensors_of(value: object) -> dict[str, Tensor]:
    """Every tensor of a state, by its path."""
    found: dict[str, Tensor] = {}
    if isinstance(value, Tensor):
        return {"": value}
    if dataclasses.is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        parts = dict(value) if isinstance(value, Mapping) else {}
    for name, part in parts.items():
        found |= {f"{name}/{key}": t for key, t in tensors_of(part).items()}
    return found


# --- the talk ---------------------------------------------------------------------------------


def test_every_mode_of_the_job_is_held_to_these_promises() -> None:
    assert tuple(MAKERS) == MODE_NAMES


@each
def test_a_mode_is_a_mode_and_its_state_is_frozen(name: str, task: str) -> None:
    mode, _ = built(name, task)
    assert {m for m in dir(Mode) if not m.startswith("_")} <= set(dir(mode))
    state = mode.start()
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.closed = 3


@each
def test_a_round_is_a_task_then_asks_and_answers_then_an_update(name: str, task: str) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    for message in seen.tasks.values():
        assert (message.kind, message.facts["round"]) == ("task", 1)
    for asks, answers in zip(seen.asks, seen.answers, strict=True):
        assert asks.keys() == answers.keys()
        for client, ask in asks.items():
            assert (ask.kind, ask.facts["round"]) == ("ask", 1)
            assert ask.topic in mode.asks
            answer = answers[client]
            assert (answer.kind, answer.topic, answer.facts["round"]) == ("answer", ask.topic, 1)
    for worker in workers:
        update = seen.updates[worker.client]
        assert (update.kind, update.facts["round"]) == ("update", 1)
        assert update.facts["examples"] == len(worker.train)
        assert update.facts["loss"] > 0
        assert isinstance(seen.kept[worker.client], ClientState)
    assert set(mode.asks) == {a.topic for wave in seen.asks for a in wave.values()}
    assert seen.state.closed == 1
    assert mode.task(seen.state, "ann").facts["round"] == 2


@each
def test_the_local_engine_and_the_wire_change_no_bit(name: str, task: str) -> None:
    mode, workers = built(name, task)
    by_hand = drive(mode, mode.start(), workers)
    on_wire = drive(mode, mode.start(), workers, carry=lambda m: unpack(pack(m)))
    state, mine = tiny.play(mode, workers[0].job, workers, rounds=1)
    for other, kept in ((on_wire.state, on_wire.kept), (state, mine)):
        assert tiny.equal(tensors_of(by_hand.state), tensors_of(other))
        for client in ("ann", "bob"):
            assert tiny.equal(tensors_of(by_hand.kept[client]), tensors_of(kept[client]))


@each
def test_states_and_base_stay_as_they_were(name: str, task: str) -> None:
    mode, workers = built(name, task)
    body = workers[0].body
    base = {n: p.clone() for n, p in body.blocks.model.state_dict().items() if "lora" not in n}
    head = {n for n in base if n.startswith(tuple(f"{name}." for name in body.blocks.head_names))}
    first = drive(mode, mode.start(), workers)
    held = [first.state, first.open, *first.before, first.kept]
    copies = [{n: t.clone() for n, t in tensors_of(s).items()} for s in held]
    drive(mode, first.state, workers, first.kept)
    for state, copy in zip(held, copies, strict=True):
        assert tiny.equal(tensors_of(state), copy)
    now = body.blocks.model.state_dict()
    trained = head if task == "classify" else set()
    assert all(torch.equal(now[n], base[n]) for n in base.keys() - trained)


@each
def test_a_second_round_differs_and_is_reproduced_bit_for_bit(name: str, task: str) -> None:
    mode, workers = built(name, task)
    first, again = (tiny.play(mode, workers[0].job, workers, rounds=2) for _ in range(2))
    assert tiny.equal(tensors_of(first[0]), tensors_of(again[0]))
    assert tiny.equal(tensors_of(first[1]), tensors_of(again[1]))
    once, _ = tiny.play(mode, workers[0].job, workers, rounds=1)
    assert not tiny.equal(dict(mode.server_model(once)), dict(mode.server_model(first[0])))


@each
def test_what_a_mode_serves_is_a_whole_adapter(name: str, task: str) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    body = workers[0].body
    served = mode.server_model(seen.state)
    assert {n: t.shape for n, t in served.items()} == {n: t.shape for n, t in body.initial.items()}
    assert not tiny.equal(dict(served), dict(body.initial))
    own = mode.client_model(seen.kept["ann"])
    assert (own is None) == (name != "logits")


# --- refusals ---------------------------------------------------------------------------------


@each
def test_messages_of_another_round_are_refused(name: str, task: str) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    state = seen.state
    with pytest.raises(MessageError, match="belongs to round 1, and round 2 is open"):
        mode.add(state, mode.zero(state), "ann", seen.updates["ann"])
    for asks in seen.asks:
        with pytest.raises(MessageError, match="belongs to round 1, and round 2 is open"):
            mode.answer(state, asks)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("logits", "private"),
        ("split", "shared"),
        ("split", "private"),
    ],
)  # fmt: skip
def test_an_answer_of_another_round_is_refused(name: str, labels: str) -> None:
    mode, workers = built(name, split={"cut": (1, 3), "labels": labels})
    seen = drive(mode, mode.start(), workers)
    talk = tiny.opened(mode.work(seen.tasks["ann"], workers[0], ClientState()))
    tiny.until_ask(talk)
    answer = seen.answers[0]["ann"]
    with pytest.raises(MessageError, match="belongs to round 2"):
        tiny.until_ask(talk, replace(answer, facts={**answer.facts, "round": 2}))


@each
def test_an_ask_about_something_else_is_refused(name: str, task: str) -> None:
    mode, _ = built(name, task)
    ask = Message(kind="ask", topic="weather", facts={"round": 1})
    with pytest.raises(TriskelError, match=r"weather|no questions"):
        mode.answer(mode.start(), {"ann": ask})


@each
@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "three", None])
def test_an_update_that_rests_on_no_number_of_examples_is_refused(
    name: str, task: str, bad: object
) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    update = seen.updates["ann"]
    for fact in ("round", "examples"):
        lying = replace(update, facts={**update.facts, fact: bad})
        if (name, fact) == ("logits", "examples"):
            continue  # not used there: predictions count alike
        if fact == "examples" and bad == 2.5:
            continue  # a weight need not be whole
        with pytest.raises(TriskelError):
            mode.add(seen.open, mode.zero(seen.open), "ann", lying)


def damaged(message: Message) -> list[tuple[str, Message]]:
    """The same message with one section or tensor missing, renamed, reshaped or too many."""
    found: list[tuple[str, Message]] = []

    def put(what: str, name: str, section: Section) -> None:
        found.append(
            (f"{what} {name}", replace(message, sections={**message.sections, name: section}))
        )

    for name, section in message.sections.items():
        rest = {n: s for n, s in message.sections.items() if n != name}
        found.append((f"no {name}", replace(message, sections=rest)))
        found.append((f"{name} renamed", replace(message, sections={**rest, "other": section})))
        first = next(iter(section.tensors))
        others = {n: t for n, t in section.tensors.items() if n != first}
        value = section.tensors[first]
        put("a tensor less in", name, replace(section, tensors=others))
        put("another name in", name, replace(section, tensors={**others, "other": value}))
        put("a row less in", name, replace(section, tensors={**section.tensors, first: value[:-1]}))
        put("one more in", name, replace(section, tensors={**section.tensors, "other": value}))
        if value.is_floating_point() and section.kind != "activations":  # there the wire refuses
            whole = value.to(torch.int32)
            put("integers in", name, replace(section, tensors={**section.tensors, first: whole}))
    more = Section(kind="dense", tensors={"x": torch.zeros(1)})
    found.append(("a section more", replace(message, sections={**message.sections, "more": more})))
    return found


def refused(what: str, act: Callable[..., object], *given: object) -> None:
    """Hold that the mode itself refuses, whatever the wire does."""
    try:
        act(*given)
    except MessageError:
        return
    pytest.fail(f"{what} was taken")


@each
def test_damaged_tasks_answers_and_updates_are_refused(name: str, task: str) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    for what, message in damaged(seen.updates["ann"]):
        refused(f"an update with {what}", mode.add, seen.open, mode.zero(seen.open), "ann", message)
    for what, message in damaged(seen.tasks["ann"]):
        refused(f"a task with {what}", next, mode.work(message, workers[0], ClientState()))


@each
def test_damaged_asks_are_refused(name: str, task: str) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    for state, asks in zip(seen.before, seen.asks, strict=True):
        client, ask = next(iter(asks.items()))
        for what, message in damaged(ask):
            refused(f"an ask with {what}", mode.answer, state, {**asks, client: message})


@each
def test_damaged_answers_are_refused(name: str, task: str) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    topics: set[str] = set()
    for step, answers in enumerate(seen.answers):
        if answers.get("ann") is None or answers["ann"].topic in topics:
            continue
        topics.add(answers["ann"].topic)
        for what, message in damaged(answers["ann"]):
            talk = tiny.opened(mode.work(seen.tasks["ann"], workers[0], ClientState()))
            tiny.until_ask(talk)
            for earlier in range(step):
                tiny.until_ask(talk, seen.answers[earlier]["ann"])
            refused(f"an answer with {what}", tiny.until_ask, talk, message)


@each
@pytest.mark.parametrize("kind", ["task", "update", "answer", "state"])
def test_a_message_of_another_kind_is_no_update(name: str, task: str, kind: str) -> None:
    mode, workers = built(name, task)
    seen = drive(mode, mode.start(), workers)
    if kind != "update":
        lying = replace(seen.updates["ann"], kind=kind)  # type: ignore[arg-type]
        with pytest.raises(MessageError):
            mode.add(seen.open, mode.zero(seen.open), "ann", lying)
    if kind != "task":
        with pytest.raises(MessageError):
            alone(mode.work(replace(seen.tasks["ann"], kind=kind), workers[0], ClientState()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("logits", "private"),
        ("split", "private"),
        ("split", "shared"),
    ],
)  # fmt: skip
def test_a_message_of_another_kind_is_no_ask(name: str, labels: str) -> None:
    mode, workers = built(name, split={"cut": (1, 3), "labels": labels})
    seen = drive(mode, mode.start(), workers)
    for kind in ("task", "update", "answer", "state"):
        lying = {c: replace(a, kind=kind) for c, a in seen.asks[0].items()}  # type: ignore[arg-type]
        with pytest.raises(MessageError):
            mode.answer(seen.before[0], lying)


def test_an_evaluation_never_trains() -> None:
    mode, workers = built("split", split={"cut": (1, 3), "labels": "shared"})
    seen = drive(mode, mode.start(), workers)
    peek = {c: replace(a, kind="evaluate") for c, a in seen.asks[0].items()}
    try:
        after, _ = mode.answer(seen.before[0], peek)
    except MessageError:
        return
    assert tiny.equal(tensors_of(after), tensors_of(seen.before[0]))


# --- evaluation -------------------------------------------------------------------------------


def alike(found: Score, wanted: Score) -> None:
    assert (found.correct, found.count) == (wanted.correct, wanted.count)
    assert found.loss_sum == pytest.approx(wanted.loss_sum, rel=1e-5)
    if wanted.confusion is not None:
        assert torch.equal(found.confusion, wanted.confusion)


@each
def test_a_probe_scores_what_evaluation_in_place_scores(name: str, task: str) -> None:
    mode, workers = built(name, task)
    trained = drive(mode, mode.start(), workers)
    seen = drive(
        mode, trained.state, workers, trained.kept, probe=True, carry=lambda m: unpack(pack(m))
    )
    for worker in workers:
        client = worker.client
        own = mode.client_model(trained.kept[client])
        tensors = mode.server_model(trained.state) if own is None else own
        message = seen.updates[client]
        assert message.kind == "evaluate"
        wanted = evaluate(worker.body, tensors, worker.test)
        assert wanted.count > 0
        alike(score_of(message, worker.body.classes), wanted)
    for message in (m for wave in (*seen.asks, *seen.answers) for m in wave.values()):
        assert message.kind == "evaluate"
    assert tiny.equal(tensors_of(seen.state), tensors_of(trained.state)), "a probe trains nothing"
    assert tiny.equal(tensors_of(seen.kept), tensors_of(trained.kept))


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_evaluation_in_place_is_that_of_the_plain_model(task: str) -> None:
    mode, workers = built("params", task)
    trained = drive(mode, mode.start(), workers)
    ann = workers[0]
    plain = tiny.Plain("llama", ann.job).load(dict(mode.server_model(trained.state)))
    batch = ann.batch(ann.test, range(len(ann.test)))
    with torch.no_grad():
        logits = plain.logits(batch)
    found = evaluate(ann.body, mode.server_model(trained.state), ann.test)
    assert found.correct == int((logits.argmax(-1) == batch.targets).sum())
    nats = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
    assert found.loss_sum == pytest.approx(float(nats), rel=1e-5)


def test_evaluation_is_without_dropout() -> None:
    _, (ann, _) = built("params", adapter={"dropout": 0.5})
    tensors = tiny.random_like(ann.body.initial, 1)
    ann.body.dropout(None)
    wanted = evaluate(ann.body, tensors, ann.test).loss_sum
    ann.body.dropout(1)  # as training leaves it
    assert evaluate(ann.body, tensors, ann.test).loss_sum == wanted


def test_no_test_texts_score_nothing_and_more_right_than_asked_is_no_score() -> None:
    mode, (ann, _) = built("params")
    found = evaluate(ann.body, mode.start().adapter, tiny.examples(0))
    assert (found.count, found.loss_sum) == (0, 0)
    message = drive(mode, mode.start(), [ann], probe=True).updates["ann"]
    lying = replace(message, facts={**message.facts, "correct": 1000})
    with pytest.raises(MessageError, match="1000 correct predictions out of"):
        score_of(lying, ann.body.classes)


@pytest.mark.parametrize(
    ("name", "labels"), [("logits", "private"), ("split", "private"), ("split", "shared")]
)
def test_an_ask_that_is_answered_with_nothing_ends_the_talk(name: str, labels: str) -> None:
    mode, workers = built(name, split={"cut": (1, 3), "labels": labels})
    talk = mode.work(mode.task(mode.start(), "ann"), workers[0], ClientState())
    tiny.until_ask(tiny.opened(talk))
    with pytest.raises(TriskelError, match="answered with nothing"):
        talk.send(None)


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_with_shared_labels_the_server_counts_what_evaluation_in_place_scores(task: str) -> None:
    mode, workers = built("split", task, split={"cut": (1, 3), "labels": "shared"})
    trained = drive(mode, mode.start(), workers)
    seen = drive(mode, trained.state, workers, trained.kept, probe=True)
    for worker in workers:
        wanted = evaluate(worker.body, mode.server_model(trained.state), worker.test)
        assert wanted.count > 0
        alike(score_of(seen.updates[worker.client], worker.body.classes), wanted)


# --- capabilities -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_a_mode_needs_public_texts_exactly_where_it_fails_without(name: ModeName) -> None:
    mode, workers = built(name)
    none = [replace(w, public=tiny.examples(0)) for w in workers]
    if MODES.spec(name).traits.needs_public_data:
        with pytest.raises(TriskelError):
            drive(mode, mode.start(), none)
    else:
        drive(mode, mode.start(), none)


@pytest.mark.parametrize("name", MAKERS)
def test_a_sum_of_updates_is_enough_exactly_where_the_mode_says_so(name: ModeName) -> None:
    mode, workers = built(name)
    seen = drive(mode, mode.start(), workers)
    carried = bool(seen.updates["ann"].sections)
    assert MODES.spec(name).traits.linear_in_updates == carried
    assert not MODES.spec(name).traits.needs_individual_updates
    if not carried:
        return

    def closed(shift: float) -> dict[str, Tensor]:
        total = mode.zero(seen.open)
        for client, update in seen.updates.items():
            moved = {
                n: replace(
                    s, tensors={k: t + shift * (client == "ann") for k, t in s.tensors.items()}
                )
                for n, s in update.sections.items()
            }
            total = mode.add(seen.open, total, client, replace(update, sections=moved))
        return dict(mode.server_model(mode.close(seen.open, total)))

    none, one, two = closed(0.0), closed(1.0), closed(2.0)
    changed = 0
    for n in none:
        torch.testing.assert_close(two[n] - none[n], 2 * (one[n] - none[n]), rtol=1e-4, atol=1e-5)
        changed += not torch.equal(one[n], none[n])
        if not torch.equal(one[n], none[n]):
            share = torch.full_like(none[n], 5 / 9)
            torch.testing.assert_close(one[n] - none[n], share, rtol=1e-4, atol=1e-5)
    assert changed


@pytest.mark.parametrize("name", MAKERS)
def test_a_job_is_refused_exactly_where_clients_differ_in_what_a_mode_cannot_carry(
    name: ModeName,
) -> None:
    def job(**own: object) -> Job:
        return tiny.job(name, clients={"each": {"ann": own}})

    can = MODES.spec(name).traits
    assert (unsupported(job(model="gpt2"), name) is None) == can.mixed_models
    assert (unsupported(job(rank=3), name) is None) == can.mixed_ranks
    assert unsupported(job(), name) is None


@pytest.mark.parametrize("name", MAKERS)
def test_ranks_differ_exactly_where_the_mode_says_so(name: ModeName) -> None:
    mode, (ann, bob) = built(name)
    wider = ann.job.model_copy(update={"adapter": ann.job.adapter.model_copy(update={"rank": 3})})
    workers = [ann, replace(bob, body=tiny.body("llama", wider))]
    if MODES.spec(name).traits.mixed_ranks:
        drive(mode, mode.start(), workers)
    else:
        with pytest.raises(MessageError):
            drive(mode, mode.start(), workers)


@pytest.mark.parametrize("name", MAKERS)
def test_only_split_has_a_cut_to_differ_in(name: ModeName) -> None:
    assert MODES.spec(name).client_keys == (("cut",) if name == "split" else ())
    each_cuts = {"each": {"ann": {"cut": (0, 2)}, "bob": {"cut": (2, 4)}}}
    mode, workers = built(name, clients=each_cuts)
    seen = drive(mode, mode.start(), workers)
    sizes = {
        c: sum(t.numel() for t in tensors_of(u.sections).values()) for c, u in seen.updates.items()
    }
    assert seen.state.closed == 1
    assert all(sizes.values()) == (name != "logits")


def test_a_mode_whose_spec_says_that_clients_keep_nothing_may_keep_nothing(tmp_path: Path) -> None:
    """In one process as between sites (`tests/engines/flare/test_sites_counted.py`)."""
    mode, workers = built("params")
    job = workers[0].job
    shares = {w.client: Share(train=w.train, test=w.test) for w in workers}
    resources = tiny.resources(job, workers[0].body, shares, tiny.examples(4, seed=50))
    stage = stage_of("params", resources, tiny.ignore)

    class Keeping:
        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any of a mode
            return getattr(mode, name)

        def work(self, task: Message, worker: Worker, client_state: ClientState) -> Any:  # noqa: ANN401
            update, _ = yield from mode.work(task, worker, client_state)
            return update, ClientState(facts={"held": 1})

    keeping = replace(stage, mode=Keeping())
    with pytest.raises(RoundError, match=r"mode 'params' keep something .* client_state"):
        play(keeping, LocalEngine(job), folder=tmp_path / "out", watch=tiny.ignore)
    assert play(stage, LocalEngine(job), folder=tmp_path / "out", watch=tiny.ignore).rows
