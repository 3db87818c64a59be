"""Every way to train and share: restated by hand, resumed, joined, and with a client away."""

import json
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triskel.core.registry import MODES
from triskel.errors import TriskelError
from triskel.experiment.checkpoint import Frozen, freeze, thaw
from triskel.model.compute_choice import Choice
from triskel.modes.params.core import cored, joined
from triskel.modes.params.mode import Params
from triskel.training.conversation import Sent
from triskel.training.loop import StepId
from triskel.training.worker import Worker
from triskel.types import ClientState, Message, Section, Tensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny.py")))
SIZES = {"ann": 5, "bob": 8, "eve": 3}
SHARED: dict[str, dict[str, Any]] = {
    trains: {"trains": trains} for trains in ("both", "ffa", "fedsa", "rolora", "fedsb")
}
LOCAL: dict[str, dict[str, Any]] = {
    local: {"local": local}
    for local in ("fedprox", "scaffold", "fedadamw", "mr_mtl", "ditto", "pfedme", "finetune")
}
SERVERS: dict[str, dict[str, Any]] = {
    "nesterov": {"server_optimizer": "nesterov", "server_lr": 0.7, "server_momentum": 0.9},
    **{name: {"server_optimizer": name, "server_lr": 0.05} for name in ("adam", "yogi", "adagrad")},
    "momentum": {"server_momentum": 0.9},
}
AGGREGATES: dict[str, dict[str, Any]] = {
    name: {"aggregate": name}
    for name in (
        *("fedex", "flora", "flexlora", "raflora", "florist", "hetlora", "lora_fair", "fednova"),
        *("median", "geometric_median", "norm_clip"),
    )
} | {
    name: {"aggregate": {"name": name, "attackers": 0}}
    for name in ("trimmed_mean", "krum", "multi_krum")
}
MIXED: dict[str, dict[str, Any]] = {
    "mixed, flexlora": {"aggregate": "flexlora", "ranks": {"ann": 1}},
    "mixed, rest": {"aggregate": "median", "ranks": {"ann": 1}},
}
MEMBERS: dict[str, dict[str, Any]] = {
    **SHARED, **LOCAL, **SERVERS, **AGGREGATES, **MIXED,
    "head": {"head": "local"},
    "ffa, head, kept": {"trains": "ffa", "head": "local", "moments": "kept"},
    "fedsvd": {"aggregate": "fedsvd", "trains": "ffa"},
    "rolora, scaffold": {"trains": "rolora", "local": "scaffold"},
    "fedsb, ditto": {"trains": "fedsb", "local": "ditto"},
    "kept": {"moments": "kept"},
    "diloco": {"moments": "kept", **SERVERS["nesterov"]},
    "fedkseed": {"exchange": {"name": "fedkseed", "seeds": 16, "steps": 3}},
    "fedmezo": {"exchange": {"name": "fedmezo", "steps": 3}},
}  # fmt: skip
FAST, PLAIN = Choice(path="fast", join=10_000), Choice()
every = pytest.mark.parametrize("member", MEMBERS)


def clients(  # the sections are those of a job
    options: Mapping[str, Any], *, dtype: torch.dtype = torch.float32, how: Choice = FAST
) -> tuple[Any, list[Worker]]:
    """A mode and three clients of one body."""
    given = {k: v for k, v in options.items() if k != "ranks"}
    plain: dict[str, Any] = {"weight_decay": 0.0, "schedule": "constant", "max_grad_norm": 0.0}
    train: dict[str, Any] = plain if "exchange" in given else {}
    job = tiny.job(rounds=4, params=given, train=train)
    body = tiny.body("llama", job, dtype=dtype)
    body.use(how)
    workers = [tiny.worker(n, job, body, tiny.examples(c, seed=c)) for n, c in SIZES.items()]
    setting = replace(tiny.setting("params", workers[0]), ranks=options.get("ranks", {}))
    return Params.build(setting), workers


def written(state: Any) -> Any:  # noqa: ANN401 - any state
    """A state as a checkpoint brings it back."""
    frozen = freeze(state)
    tensors = {n: t.clone() for n, t in frozen.tensors.items()}
    facts = json.loads(json.dumps(frozen.facts))
    return thaw(state, Frozen(tensors=tensors, facts=facts))


def size(message: Message) -> int:
    """Bytes of the tensors of a message."""
    return sum(t.nbytes for s in message.sections.values() for t in s.tensors.values())


def reread(kept: ClientState) -> ClientState:
    """What a client kept, as the disk brings it back."""
    groups = {g: {n: t.clone() for n, t in some.items()} for g, some in kept.groups.items()}
    return ClientState(groups=groups, facts=json.loads(json.dumps(dict(kept.facts))))


def numbers(state: Any, kept: Mapping[str, ClientState]) -> dict[str, Tensor]:  # noqa: ANN401
    """Everything that the server and the clients have."""
    found = dict(freeze(state).tensors)
    for client, own in kept.items():
        for group, tensors in own.groups.items():
            found |= {f"{client}/{group}/{n}": t for n, t in tensors.items()}
    return found


def played(mode: Any, workers: Sequence[Worker], cohorts: Sequence[str], *, resumed: bool) -> Any:  # noqa: ANN401
    """The server and clients after rounds of these cohorts."""
    state, kept = mode.start(), dict[str, ClientState]()
    for cohort in cohorts:
        some = [w for w in workers if w.client in cohort.split()]
        state, kept = tiny.play(mode, some[0].job, some, state=state, client_states=kept, rounds=1)
        if resumed:
            state = written(state)
            kept = {c: reread(own) for c, own in kept.items()}
    return state, kept


@every
def test_a_run_that_was_resumed_after_every_round_ends_with_the_same_bits(member: str) -> None:
    cohorts = ("ann bob eve", "ann bob", "bob eve")
    found = [
        numbers(*played(*clients(MEMBERS[member]), cohorts, resumed=resumed))
        for resumed in (False, True)
    ]
    assert tiny.equal(found[0], found[1])


@every
def test_what_clients_keep_is_what_the_job_says_that_they_keep(member: str) -> None:
    mode, workers = clients(MEMBERS[member])
    _, kept = played(mode, workers, ("ann bob eve",) * workers[0].job.rounds, resumed=False)
    some = any(own.groups or own.facts for own in kept.values())
    assert some == MODES.spec("params").carries(workers[0].job).client_state


@every
def test_clients_in_one_pass_end_as_one_by_one(member: str) -> None:
    together, apart = (
        numbers(
            *played(
                *clients(MEMBERS[member], dtype=torch.float64, how=replace(FAST, join=join)),
                ("ann bob eve",) * 2,
                resumed=False,
            )
        )
        for join in (10_000, 0)
    )
    assert together.keys() == apart.keys()
    for name, tensor in apart.items():
        assert float((together[name] - tensor).double().norm()) <= 1e-9 * (
            1 + float(tensor.double().norm())
        ), name


# --- what trains, restated --------------------------------------------------------------------


def descended(
    plain: Any,  # noqa: ANN401 - of `tiny`
    worker: Worker,
    round_: int,
    given: Tensors,
    full: Callable[[Tensors], Tensors],
) -> Tensors:
    """What AdamW makes of some tensors, the rest of the model being a function of them."""
    leaves = {n: nn.Parameter(t.clone()) for n, t in given.items()}
    adam = torch.optim.AdamW(leaves.values(), lr=0.01, weight_decay=0.0)
    for batch in worker.batches(StepId(worker.client, round_), worker.training.epochs):
        adam.zero_grad()
        plain.loss(batch, full(leaves)).backward()
        adam.step()
    return {n: p.detach() for n, p in leaves.items()}


def average(sent: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """The mean weighted by texts."""
    names, total = next(iter(sent.values())), sum(SIZES[c] for c in sent)
    return {n: sum(SIZES[c] * sent[c][n] for c in sent) / total for n in names}  # type: ignore[misc]


@pytest.mark.parametrize("trains", ["both", "ffa", "fedsa", "rolora"])
@pytest.mark.parametrize("head", ["shared", "local"])
def test_what_trains_and_travels_is_as_it_says(trains: str, head: str) -> None:
    mode, workers = clients({"trains": trains, "head": head}, dtype=torch.float64, how=PLAIN)
    plain = tiny.Plain("llama", workers[0].job, dtype=torch.float64)
    common: dict[str, Tensor] = dict(workers[0].body.initial)
    own: dict[str, dict[str, Tensor]] = {c: {} for c in SIZES}
    for round_ in (1, 2, 3):
        still = {"ffa": "lora_A", "rolora": "lora_A" if round_ % 2 else "lora_B"}.get(trains, "no")
        stays = [
            n
            for n in common
            if (trains == "fedsa" and "lora_B" in n) or (head == "local" and "score" in n)
        ]
        sent = dict[str, Tensors]()
        for worker in workers:
            start = common | own[worker.client]
            moves = {n: t for n, t in start.items() if still not in n}
            now = descended(plain, worker, round_, moves, lambda t, start=start: start | t)
            own[worker.client] = {n: now[n] for n in stays}
            sent[worker.client] = {n: t for n, t in now.items() if n not in stays}
        common |= average(sent)
    state, kept = tiny.play(mode, workers[0].job, workers, rounds=3)
    assert (
        tiny.apart({n: state.adapter[n] for n in sent["ann"]}, {n: common[n] for n in sent["ann"]})
        < 1e-9
    )
    for client in SIZES:
        model = mode.client_model(kept[client])
        assert (model is None) == (not own[client])
        if model is not None:
            assert tiny.apart({n: model[n] for n in own[client]}, own[client]) < 1e-9
    assert (mode.server_model(state) is None) == any(own.values())


def product(tensors: Tensors, module: str) -> Tensor:
    """B A of a module, or B R A."""
    factors = [tensors.get(f"{module}.lora_{part}.weight") for part in ("B", "core", "A")]
    up, core, down = (None if t is None else t.double() for t in factors)
    assert up is not None
    assert down is not None
    return up @ down if core is None else up @ core @ down


def test_a_core_trains_between_factors_of_the_first_round_and_its_mean_is_exact() -> None:
    mode, workers = clients({"trains": "fedsb"}, dtype=torch.float64, how=PLAIN)
    plain = tiny.Plain("llama", workers[0].job, dtype=torch.float64)
    both, _ = clients({}, dtype=torch.float64, how=PLAIN)
    after, _ = tiny.play(both, workers[0].job, workers, rounds=1)
    state, kept = tiny.play(mode, workers[0].job, workers, rounds=1)
    modules = [n.removesuffix(".lora_A.weight") for n in after.adapter if "lora_A" in n]
    frame, cores = dict(after.adapter), dict[str, Tensor]()
    for module in modules:
        assert (product(state.adapter, module) - product(after.adapter, module)).norm() < 1e-12
        u, s, vt = torch.linalg.svd(product(after.adapter, module))
        frame[f"{module}.lora_B.weight"] = u[:, :2]
        frame[f"{module}.lora_A.weight"], cores[module] = vt[:2], torch.diag(s[:2])
    head = {n: t for n, t in frame.items() if "score" in n}

    def full(leaves: Tensors) -> Tensors:
        ups = {f"{m}.lora_B.weight": frame[f"{m}.lora_B.weight"] @ leaves[m] for m in modules}
        return frame | ups | {n: leaves[n] for n in head}

    moved = cores | head
    sent = {w.client: descended(plain, w, 2, moved, full) for w in workers}
    state, kept = tiny.play(
        mode, workers[0].job, workers, state=state, client_states=kept, rounds=1
    )
    for module in modules:
        one_by_one = {c: {"p": product(full(sent[c]), module)} for c in sent}
        assert (product(state.adapter, module) - average(one_by_one)["p"]).norm() < 1e-9
        served = mode.server_model(state)
        assert (product(served, module) - product(state.adapter, module)).norm() < 1e-12
    assert served.keys() == workers[0].body.initial.keys()


def test_a_core_of_a_module_that_is_smaller_than_the_rank_has_zeros() -> None:
    down, up = torch.randn(4, 3).double(), torch.randn(6, 4).double()
    found = cored({"q.lora_A.weight": down, "q.lora_B.weight": up, "score.weight": down})
    assert [found[f"q.lora_{part}.weight"].shape for part in ("A", "B", "core")] == [
        (4, 3),
        (6, 4),
        (4, 4),
    ]
    assert (product(found, "q") - up @ down).norm() < 1e-12
    assert joined({"q.lora_A.weight": down}) == {"q.lora_A.weight": down}


# --- bytes, and who was away ------------------------------------------------------------------


@pytest.mark.parametrize(("trains", "parts"), [("ffa", "B"), ("rolora", "BAB"), ("fedsa", "A")])
def test_a_half_travels_in_both_directions(trains: str, parts: str) -> None:
    mode, workers = clients({"trains": trains})
    body, state = workers[0].body, mode.start()
    sizes = {p: sum(t.nbytes for n, t in body.initial.items() if f"lora_{p}" in n) for p in "AB"}
    head = sum(t.nbytes for n, t in body.initial.items() if "lora" not in n)
    kept = dict[str, ClientState]()
    for round_, part in enumerate(parts * 3 if len(parts) == 1 else parts, 1):
        # What the seed makes, or the client has, is not sent; RoLoRA's other half moved last.
        came = parts[round_ - 2] if trains == "rolora" else parts
        down = sizes[came] if trains == "fedsa" or round_ > 1 else 0
        assert size(mode.task(state, "ann")) == head + down
        talks = {
            w.client: tiny.opened(
                mode.work(mode.task(state, w.client), w, kept.get(w.client, ClientState())),
                w.client,
            )
            for w in workers
        }
        total = mode.zero(state)
        for client, talk in talks.items():
            while (step := talk.step()) is not None:
                talk.do(step)
            update, kept[client] = talk.hand_over()
            assert size(update) == head + sizes[part]
            total = mode.add(state, total, client, update)
        state = mode.close(state, total)


@pytest.mark.parametrize("member", ["ffa", "rolora", "fedsb", "ffa, head, kept"])
def test_who_was_away_asks_for_what_it_lacks_and_has_what_everybody_has(member: str) -> None:
    mode, workers = clients(MEMBERS[member])
    start = replace(mode, held=replace(mode.held, since={"down": -1})) if "ffa" in member else mode
    state, kept = played(start, workers, ("ann bob", "ann bob", "ann"), resumed=False)
    eve = workers[2]
    talk = tiny.opened(start.work(start.task(state, "eve"), eve, ClientState()), "eve")
    ask = tiny.until_ask(talk)
    assert ask.topic == "held"
    _, answers = start.answer(state, {"eve": ask})
    named = {
        n
        for s in (*start.task(state, "eve").sections.values(), *answers["eve"].sections.values())
        for n in s.tensors
    }
    assert named == set(state.adapter)
    ann = tiny.opened(start.work(start.task(state, "ann"), workers[0], kept["ann"]), "ann")
    while (step := ann.step()) is not None:
        ann.do(step)
    assert ann.finished, "who was there asks nothing"


# --- ranks and moments ------------------------------------------------------------------------


def test_a_client_of_a_lower_rank_trains_as_in_a_model_of_that_rank() -> None:
    mode, workers = clients(
        {"aggregate": "flexlora", "ranks": {"ann": 1}}, dtype=torch.float64, how=PLAIN
    )
    low = tiny.job(rounds=4, adapter={"rank": 1})
    body = tiny.body("llama", low, dtype=torch.float64)
    state = mode.start()
    state = replace(state, adapter=tiny.random_like(state.adapter, 3))
    task = mode.task(state, "ann")
    sent = {n: t for s in task.sections.values() for n, t in s.tensors.items()}
    assert {n: t.shape for n, t in sent.items()} == {n: t.shape for n, t in body.initial.items()}
    # The module is s B A: what came is the first component at the client's own scale, 6 to 3.
    for name, tensor in sent.items():
        wide = state.adapter[name]
        first = wide[:1] if "lora_A" in name else wide[:, :1] * 0.5 if "lora_B" in name else wide
        assert torch.equal(tensor, first)
    plain = tiny.Plain("llama", low, dtype=torch.float64)
    wanted = descended(plain, workers[0], 1, sent, lambda t: t)
    talk = tiny.opened(mode.work(task, workers[0], ClientState()))
    while (step := talk.step()) is not None:
        talk.do(step)
    update, _ = talk.hand_over()
    found = {n: t for s in update.sections.values() for n, t in s.tensors.items()}
    assert tiny.apart(found, wanted) < 1e-12


def test_kept_moments_make_rounds_of_one_client_one_long_run_of_adam() -> None:
    mode, workers = clients({"moments": "kept"}, dtype=torch.float64, how=PLAIN)
    ann = workers[0]
    plain = tiny.Plain("llama", ann.job, dtype=torch.float64).load(ann.body.initial)
    batches = [b for r in (1, 2, 3) for b in ann.batches(StepId("ann", r), ann.training.epochs)]
    wanted = plain.train(batches, 0.01).now()
    state, _ = tiny.play(mode, ann.job, [ann], rounds=3)
    assert tiny.apart(state.adapter, wanted) < 1e-9
    fresh, _ = tiny.play(clients({}, dtype=torch.float64, how=PLAIN)[0], ann.job, [ann], rounds=3)
    assert tiny.apart(fresh.adapter, wanted) > 1e-4


# --- AdamW with everybody's moments -----------------------------------------------------------


def test_fedadamw_is_its_formulas() -> None:
    alpha, decay, rate = 0.4, 0.1, 0.01
    local = {"local": {"name": "fedadamw", "alignment": alpha}}
    mode, workers = clients(local, dtype=torch.float64, how=PLAIN)
    workers = [
        replace(w, training=w.training.model_copy(update={"weight_decay": decay, "epochs": 2}))
        for w in workers
    ]
    plain = tiny.Plain("llama", workers[0].job, dtype=torch.float64)
    x: dict[str, Tensor] = dict(workers[0].body.initial)
    step = {n: torch.zeros_like(t) for n, t in x.items()}
    square, whole, total = dict.fromkeys(x, 0.0), 0.0, sum(SIZES.values())
    for round_ in (1, 2, 3):
        ends, squares, counts = (
            dict[str, Tensors](),
            dict[str, dict[str, float]](),
            dict[str, int](),
        )
        for worker in workers:
            y = {n: t.clone() for n, t in x.items()}
            m = {n: torch.zeros_like(t) for n, t in x.items()}
            v = {n: torch.full_like(t, square[n]) for n, t in x.items()}
            k = 0
            for batch in worker.batches(StepId(worker.client, round_), 2):
                leaves = {n: nn.Parameter(t) for n, t in y.items()}
                plain.loss(batch, leaves).backward()
                k += 1
                for n, leaf in leaves.items():
                    g = leaf.grad
                    assert g is not None
                    m[n] = 0.9 * m[n] + 0.1 * g
                    v[n] = 0.999 * v[n] + 0.001 * g * g
                    adam = (m[n] / (1 - 0.9**k)) / (
                        (v[n] / (1 - 0.999 ** (round(whole) + k))).sqrt() + 1e-8
                    )
                    y[n] = y[n] * (1 - rate * decay) - rate * adam - alpha * step[n]
            ends[worker.client], counts[worker.client] = y, k
            squares[worker.client] = {n: float(t.mean()) for n, t in v.items()}
        mean = average(ends)
        often = sum(SIZES[c] * counts[c] for c in SIZES) / total
        step = {n: (x[n] - mean[n]) / often for n in x}
        square = {n: sum(SIZES[c] * squares[c][n] for c in SIZES) / total for n in x}
        x, whole = mean, whole + often
    state, _ = tiny.play(mode, workers[0].job, workers, rounds=3)
    assert tiny.apart(state.adapter, x) < 1e-9


# --- what a client must not send --------------------------------------------------------------


def first(mode: Any, worker: Worker) -> tuple[Any, Message]:  # noqa: ANN401 - any mode
    """The server before a round, and a client's update of it."""
    state = mode.start()
    talk = tiny.opened(mode.work(mode.task(state, worker.client), worker, ClientState()))
    while (step := talk.step()) is not None:
        talk.do(step)
    return state, talk.hand_over()[0]


def changed(update: Message, section: str, **tensors: Tensor | None) -> Message:
    """An update of which some tensors of a section are others, or are not there."""
    now = {**update.sections[section].tensors, **tensors}
    left = {n: t for n, t in now.items() if t is not None}
    one = replace(update.sections[section], tensors=left)
    return replace(update, sections={**update.sections, section: one})


def lies(update: Message) -> dict[str, Message]:
    """Updates that are not what they must be."""
    found: dict[str, Message] = {
        "another round": replace(update, facts={**update.facts, "round": 2}),
        "no round": replace(update, facts={k: v for k, v in update.facts.items() if k != "round"}),
        "no sections": replace(update, sections={}),
        "one more": replace(
            update, sections={**update.sections, "more": Section(kind="dense", tensors={})}
        ),
    }
    for count in (0, -1, True, "5", None, float("nan")):
        found[f"examples {count!r}"] = replace(update, facts={**update.facts, "examples": count})
    for name, section in update.sections.items():
        tensor, value = next(iter(section.tensors.items()))
        found |= {
            f"{name} missing": replace(
                update, sections={n: s for n, s in update.sections.items() if n != name}
            ),
            f"{name} less": changed(update, name, **{tensor: None}),
            f"{name} more": changed(update, name, strange=value),
            f"{name} longer": changed(update, name, **{tensor: torch.cat([value, value])}),
            f"{name} of another type": changed(update, name, **{tensor: value.bool()}),
        }
        if section.facts:
            other = replace(section, facts=dict.fromkeys(section.facts, 9.5))
            sections = {**update.sections, name: other}
            found[f"{name} of other facts"] = replace(update, sections=sections)
        if value.is_floating_point():
            for bad in (float("nan"), float("inf")):
                spoilt = value.clone().flatten()
                spoilt[-1] = bad
                found[f"{name} with {bad}"] = changed(
                    update, name, **{tensor: spoilt.view_as(value)}
                )
    return found


@every
def test_an_update_that_is_not_what_it_must_be_is_refused_and_changes_nothing(member: str) -> None:
    mode, (ann, *_) = clients(MEMBERS[member])
    state, update = first(mode, ann)
    before = {n: t.clone() for n, t in freeze(state).tensors.items()}
    total = mode.zero(state)
    for what, lie in lies(update).items():
        with pytest.raises(TriskelError) as caught:  # noqa: PT012 - the sum may be refused at its end
            mode.close(state, mode.add(state, total, "ann", lie))
            pytest.fail(f"{what} was taken")
        assert "\n" not in str(caught.value), what
    assert tiny.equal(dict(freeze(state).tensors), before)
    mode.close(state, mode.add(state, total, "ann", update))


@every
def test_a_task_that_is_not_what_it_must_be_is_refused(member: str) -> None:
    mode, workers = clients(MEMBERS[member])
    state, kept = played(mode, workers, ("ann bob eve",), resumed=False)
    task = mode.task(state, "ann")
    for what, lie in lies(task).items():
        if what.startswith(("another round", "examples")) or " with " in what:
            continue  # a client takes the round as it is told; what is no number the wire refuses
        if what in {"side missing", "control missing", "control less", "squares less"}:
            continue  # there are none before a round closed, and of half in one of half
        with pytest.raises(TriskelError) as caught:  # noqa: PT012 - or its training ends in none
            talk = tiny.opened(mode.work(lie, workers[0], kept.get("ann", ClientState())))
            while (step := talk.step()) is not None:
                assert not isinstance(step, Sent), what
                talk.do(step)
            talk.hand_over()
            pytest.fail(f"{what} was taken")
        assert "\n" not in str(caught.value), what
