"""Which text was trained on? What a client's own message of the first round tells somebody else.

With a cohort of two, either client can subtract its own part of what comes back, and the server
sees the message anyway. So an attacker holds the adapter and head that one client sends in
`params`, or its predictions on the public set in `logits`, and must name, among 200 texts with
their labels, the one that the client trained on. The other rows of the client are none of the 200.
Messages are those of the modes' own code, at the demo's model, adapter and learning rate.

    params   the text whose gradient at the start, less the mean over candidates, points most along
             the update
    logits   the candidates are the public set, which whoever chooses it can arrange; the text whose
             label the client finds likelier, by most, than models of the attacker's own do, which
             were trained on as many other rows

`right` is the share of tries in which the named text is the one; chance is 0.005. `ahead` is the
share of the 199 others that the text is placed before; chance is 0.5. `params_1` and `logits_1`
train on that text alone, which no policy lets happen: the floor is 50 rows.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import measure
import torch
from torch import Tensor

from triskel.aggregate.mean import Mean
from triskel.config.read import parse
from triskel.config.sections import Train
from triskel.data.batches import batch_of
from triskel.experiment.resources import LocalResources, prepare
from triskel.modes.logits.mode import Logits
from triskel.modes.params.mode import Params
from triskel.training.conversation import Conversation, Sent
from triskel.training.loop import label_loss
from triskel.training.worker import Worker
from triskel.types import Batch, ClientId, ClientState, Examples, Message, Talk, Tensors

CANDIDATES, OWN, MODELS = 200, 400, 4
"""Texts to choose from, texts that the attacker holds itself, and how many models it trains."""
JOB = """
rounds = 1
[adapter]
blocks = "top:4"
[clients]
count = 1
partition = "iid"
examples = 1000
[train]
epochs = 2
batch = 16
lr = 4e-3
max_tokens = 48
[data]
test_share = 0.02
[logits]
public = 1
"""


@dataclass(frozen=True)
class Setting:
    """What the client trains on, and how.

    Attributes:
        rows: Its rows, the text among them.
        batch: Rows in a step.
        epochs: Passes over them.
    """

    rows: int
    batch: int = 16
    epochs: int = 2

    def of(self, training: Train) -> Train:
        """Return how a client trains with this setting."""
        return training.model_copy(update={"batch": self.batch, "epochs": self.epochs})


SETTINGS: Mapping[str, Setting] = {
    "params_1": Setting(1, epochs=1),
    "params_50_one_step": Setting(50, batch=50, epochs=1),
    "params_50": Setting(50),
    "params_200": Setting(200),
    "logits_1": Setting(1, epochs=1),
    "logits_50_one_step": Setting(50, batch=50, epochs=1),
    "logits_50": Setting(50),
    "logits_50_ten_epochs": Setting(50, epochs=10),
    "logits_200": Setting(200),
}


@dataclass(frozen=True, kw_only=True)
class Some(Examples):
    """Some of the pool's texts, which are known to be texts of the pool.

    Attributes:
        pool: All texts.
        places: Which of them these are.
    """

    pool: Examples
    places: Sequence[int]


def some(pool: Examples, rows: Sequence[int]) -> Some:
    """Return some of the texts."""
    ids, labels = [pool.ids[r] for r in rows], [pool.labels[r] for r in rows]
    return Some(ids=ids, labels=labels, pool=pool, places=list(rows))


@dataclass(frozen=True, kw_only=True)
class Client(Worker):
    """A worker whose hidden states are kept by text of the pool, over all tries."""

    def batch(self, examples: Examples, rows: Sequence[int]) -> Batch:
        """Return these examples side by side."""
        if isinstance(examples, Some):
            return super().batch(examples.pool, [examples.places[r] for r in rows])
        return super().batch(examples, rows)


def sent(talk: Talk, client: ClientId) -> Message:
    """Drive a client to the first message that leaves it."""
    one = Conversation(client, talk)
    while not one.finished:
        step = one.step()
        if isinstance(step, Sent):
            return step.ask
        if step is not None:
            one.do(step)
    return one.hand_over()[0]


def tensors_of(message: Message) -> Tensors:
    """Return all tensors of a message."""
    return {n: t for s in message.sections.values() for n, t in s.tensors.items()}


class Attacker:
    """Knows the model at the start, all texts of the pool and their labels.

    Args:
        resources: The model, and the pool as the training examples of its one client.
    """

    def __init__(self, resources: LocalResources) -> None:
        self.resources, self.body = resources, resources.body()
        (self.name,) = resources.active()
        self.worker: Worker = resources.worker(self.name, lambda _event: None)
        self.pool = self.worker.train
        self._slopes: dict[int, Tensor] = {}
        self._known: dict[str, Tensor] = {}
        self.own, self.texts = range(OWN), range(OWN, len(self.pool))

    def client(self, setting: Setting, rows: Sequence[int], public: Examples) -> Client:
        """Return a client that trains on some rows of the pool."""
        here = self.worker
        return Client(
            client=here.client, training=setting.of(here.training), rounds=here.rounds,
            seed=here.seed, body=here.body, meter=here.meter,
            train=some(self.pool, rows), public=public, test=here.test, watch=here.watch,
        )  # fmt: skip

    def scores(self, name: str, members: Sequence[int], pool: Sequence[int]) -> list[float]:
        """Return how much each candidate looks like one that the client trained on."""
        setting = SETTINGS[name]
        if name.startswith("params"):
            return self._by_update(setting, members, pool)
        return self._by_predictions(name, setting, members, pool)

    def _by_update(
        self, setting: Setting, members: Sequence[int], pool: Sequence[int]
    ) -> list[float]:
        worker = self.client(setting, members, some(self.pool, []))
        mode = Params(aggregate=Mean(), initial=self.body.initial, layout=self.body.layout)
        start = mode.start()
        talk = mode.work(mode.task(start, self.name), worker, ClientState())
        update, before = tensors_of(sent(talk, self.name)), tensors_of(mode.task(start, self.name))
        moved = torch.cat([(update[n] - before[n]).flatten().double() for n in sorted(before)])
        slopes = torch.stack([self._slope(row) for row in pool])
        slopes = slopes / slopes.norm(dim=1, keepdim=True).clamp(min=1e-12)
        apart = slopes - slopes.mean(dim=0)
        found = -(apart @ moved) / apart.norm(dim=1).clamp(min=1e-12)
        return found.tolist()

    def _slope(self, row: int) -> Tensor:
        """Return the gradient of a text's loss at the start, in the order of names."""
        if row not in self._slopes:
            leaves = self.body.parameters(self.body.initial)
            batch = batch_of(self.pool, [row], pool=self.body.blocks.pool)
            loss = label_loss(self.body.logits(leaves, batch), batch)
            found = torch.autograd.grad(loss, list(leaves.values()))
            by = dict(zip(leaves, found, strict=True))
            self._slopes[row] = torch.cat([by[n].flatten().double() for n in sorted(by)]).float()
        return self._slopes[row].double()

    def _by_predictions(
        self, name: str, setting: Setting, members: Sequence[int], pool: Sequence[int]
    ) -> list[float]:
        mine = self._likely(setting, members, some(self.pool, pool))
        return (mine - self._others(setting, name)[list(pool)]).tolist()

    def _others(self, setting: Setting, name: str) -> Tensor:
        """Return what the attacker's own models, trained on other rows, give each text's label."""
        if name not in self._known:
            dice, whole = random.Random(name), some(self.pool, range(len(self.pool)))  # noqa: S311
            rows = [dice.sample(self.own, setting.rows) for _ in range(MODELS)]
            found = [self._likely(setting, one, whole) for one in rows]
            self._known[name] = torch.stack(found).mean(dim=0)
        return self._known[name]

    def _likely(self, setting: Setting, rows: Sequence[int], public: Examples) -> Tensor:
        """Return the log-probability that a client gives each public text's label."""
        worker = self.client(setting, rows, public)
        server, options = replace(worker, train=some(self.pool, [])), self.resources.job.logits
        mode = Logits(server=server, options=options)
        talk = mode.work(mode.task(mode.start(), self.name), worker, ClientState())
        values = tensors_of(sent(talk, self.name))["values"].double()
        labels = torch.tensor(list(public.labels))
        return torch.log_softmax(values, dim=1).gather(1, labels[:, None])[:, 0]


def tried(attacker: Attacker, name: str, dice: random.Random) -> tuple[bool, float]:
    """Return whether the attacker names the text, and the share of others that it is before."""
    rows = dice.sample(attacker.texts, CANDIDATES + SETTINGS[name].rows - 1)
    pool, member = rows[:CANDIDATES], rows[0]
    dice.shuffle(pool)
    scores = attacker.scores(name, [member, *rows[CANDIDATES:]], pool)
    mine = scores[pool.index(member)]
    others = [s for s, row in zip(scores, pool, strict=True) if row != member]
    return mine > max(others), sum(mine > s for s in others) / len(others)


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--job", nargs="*", default=[], help="keys of the job, such as seed=1")
    options.add_argument("--setting", action="append", choices=SETTINGS)
    chosen = options.parse_args()
    sets = [f"seed={chosen.seed}", *chosen.job]
    attacker = Attacker(prepare(parse(JOB, overrides=sets), lambda _event: None))
    found: dict[str, dict[str, float]] = {}
    for name in chosen.setting or SETTINGS:
        tries = 3 if chosen.quick else 50
        dice = random.Random(f"{chosen.seed}/{name}")  # noqa: S311 - texts
        got = [tried(attacker, name, dice) for _ in range(tries)]
        right, ahead = sum(hit for hit, _ in got) / tries, sum(a for _, a in got) / tries
        found[name] = {"right": right, "ahead": ahead, "tries": tries}
        print(f"{name:20} right {right:.2f}  ahead {ahead:.2f}  of {tries} tries", flush=True)
    if chosen.out is not None:
        measure.keep("membership", found, seed=chosen.seed, out=chosen.out)


if __name__ == "__main__":
    main()
