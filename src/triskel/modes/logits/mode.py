"""Prediction exchange: clients send what they predict on public text, and learn from each other.

One round, public texts X, temperature τ, mixing weight μ, clients i with their own models fᵢ:

    server                                    client
    sends the round
                                              trains fᵢ on its private examples
                                              sends zᵢ = fᵢ(X), each row in the order of X
    z̄ = combine(z₁, z₂, ...)
    sends z̄
                                              per public batch x and private batch (x', y'):
                                              fᵢ ← AdamW(μ τ² KL(softmax(z̄/τ) ‖ softmax(fᵢ(x)/τ))
                                                         + (1 - μ) CE(fᵢ(x'), y'))
    the student g learns on X the same way, with μ = 1

Labels of public texts are never used. A round trip is one exchange. For `causal`, and of classes
where `top_k` is fewer, zᵢ is the k largest log-probabilities of every scored position with their
ids and the log of the left-over mass, and KL runs over these k + 1 outcomes. The vocabulary is the
tokenizer's: models of one tokenizer with heads padded to different lengths teach each other.
Distillation: Hinton et al. 2015, arXiv:1503.02531, section 2; in federations FedMD, Li and Wang
2019, arXiv:1910.03581; KD-FedLLMs of arXiv:2501.04436.

What leaves a client: predictions on public texts, never texts, labels or parameters. Predictions
can still betray whether a text was trained on (docs/threats.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from triskel.errors import MessageError, RoundError
from triskel.modes.logits.combine import combine
from triskel.modes.logits.knowledge import Knowledge, dense
from triskel.modes.logits.messages import knowledge_message, read_knowledge
from triskel.modes.logits.spec import LogitsOptions, named
from triskel.modes.logits.teach import distil, predict
from triskel.numerics.tensors import wide
from triskel.training.conversation import alone
from triskel.training.evaluate import probe_joined
from triskel.training.loop import StepId
from triskel.training.mode_setting import ModeSetting
from triskel.training.worker import Worker
from triskel.types import (
    Ask,
    AskStyle,
    ClientId,
    ClientState,
    Examples,
    Message,
    Talk,
    Tensors,
)
from triskel.wire import expect
from triskel.wire.adapters import number, same_round

OWN = "own"
SERVER = "server"


@dataclass(frozen=True)
class LogitsState:
    """The server between rounds.

    Attributes:
        student: The server's own adapter and head; as they started where there is no student.
        closed: Rounds closed so far.
        teacher: What the clients of the open round know together.
    """

    student: Tensors
    closed: int = 0
    teacher: Knowledge | None = field(default=None, metadata={"open": True})


@dataclass(frozen=True)
class Logits:
    """Prediction exchange.

    Attributes:
        server: The server as a worker: its model and the public set; it has no private examples.
        options: What the job says of this mode.
    """

    server: Worker
    options: LogitsOptions
    asks: Mapping[str, AskStyle] = field(
        default_factory=lambda: dict[str, AskStyle](knowledge="barrier")
    )
    in_flight: int = 0
    weighted: bool = False

    @classmethod
    def build(cls, setting: ModeSetting[LogitsOptions]) -> "Logits":
        """Return the mode, its server a worker with nothing private."""
        nothing = Examples(ids=(), labels=())
        server = Worker(
            client=SERVER,
            training=setting.training,
            rounds=setting.rounds,
            seed=setting.seed,
            body=setting.body,
            train=nothing,
            test=nothing,
            public=setting.public(),
            meter=setting.meter,
            watch=setting.watch,
        )
        return cls(server=server, options=setting.options)

    @staticmethod
    def unfit(setting: ModeSetting[Any]) -> str | None:
        """Return why these models cannot teach each other with these texts, or None if they can."""
        if not len(setting.public()):
            return (
                "no public text is left to predict on: within train.max_tokens = "
                f"{setting.training.length} none has a token of its response; raise it, or "
                "give shorter public texts"
            )
        return None if setting.body.classes else _other_tokens(setting)

    def start(self) -> LogitsState:
        """Return the server's state before round 1."""
        return LogitsState(student=self.server.body.initial)

    def task(self, state: LogitsState, client: ClientId) -> Message:
        """Open the round; both sides already hold the public set, in the same order."""
        del client  # everyone gets the same
        facts = {"round": state.closed + 1, "public": len(self.server.public)}
        return Message(kind="task", facts=facts)

    def work(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Train alone, ask once (predictions up, teacher down), learn from the teacher."""
        body, options = worker.body, self.options
        expect(task, kind="task", sections={})
        if int(number(task.facts, "public")) != len(worker.public):
            raise MessageError(
                f"the server speaks of {task.facts['public']} public texts and client "
                f"{worker.client!r} holds {len(worker.public)}"
            )
        where = StepId(worker.client, int(number(task.facts, "round", least=1)))
        trainer, loss = yield from worker.train_on(
            client_state.groups.get(OWN, body.initial), where
        )
        known = predict(worker, trainer.parameters, options)
        answer = yield Ask(knowledge_message(known, "ask", where.round, options))
        if not isinstance(answer, Message):
            raise RoundError("an ask was answered with nothing")
        same_round(answer, where.round)
        teacher = read_knowledge(answer, known, options, kind="answer")
        trainer = yield from distil(worker, trainer.parameters, teacher, where, options)
        own = {n: p.detach().cpu().clone() for n, p in trainer.parameters.items()}
        update = Message(
            kind="update",
            facts={"round": where.round, "examples": len(worker.train), "loss": loss},
        )
        return update, replace(client_state, groups={**client_state.groups, OWN: own})

    def answer(
        self, state: LogitsState, asks: Mapping[ClientId, Message]
    ) -> tuple[LogitsState, Mapping[ClientId, Message]]:
        """Make one teacher of everybody's predictions and send it to everybody."""
        options = self.options
        template = self._template()
        parties: list[Knowledge] = []
        for client in sorted(asks):
            same_round(asks[client], state.closed + 1)
            parties.append(read_knowledge(asks[client], template, options, kind="ask"))
        teacher = combine(parties, options.aggregate, options.temperature)
        answer = knowledge_message(teacher, "answer", state.closed + 1, options)
        return replace(state, teacher=teacher), dict.fromkeys(asks, answer)

    def zero(self, state: LogitsState) -> int:
        """Return the total of no updates: nobody has finished yet."""
        del state
        return 0

    def add(self, state: LogitsState, total: int, client: ClientId, update: Message) -> int:
        """Count a client that finished; its update carries no tensors."""
        del client
        same_round(update, state.closed + 1)
        expect(update, kind="update", sections={})
        return total + 1

    def merge(self, state: LogitsState, left: int, right: int) -> int:
        """Return how many finished in both."""
        del state
        return left + right

    def close(self, state: LogitsState, total: int) -> LogitsState:
        """Teach the student, where there is one.

        Raises:
            RoundError: No client sent predictions.
        """
        if not total or state.teacher is None:
            raise RoundError("no client sent predictions; every client of the cohort failed")
        student = state.student
        if self.options.student:
            where = StepId(self.server.client, state.closed + 1)
            steps = distil(self.server, student, state.teacher, where, self.options)
            trainer = alone(steps, where.client)
            student = {n: p.detach().cpu().clone() for n, p in trainer.parameters.items()}
        return LogitsState(student=student, closed=state.closed + 1)

    def server_model(self, state: LogitsState) -> Tensors | None:
        """Return the student, where there is one."""
        return state.student if self.options.student else None

    def client_model(self, client_state: ClientState) -> Tensors | None:
        """Return fᵢ, once it took part in a round."""
        return client_state.groups.get(OWN)

    def probe(self, task: Message, worker: Worker, client_state: ClientState) -> Talk:
        """Evaluate the client's own model on its own test share."""
        del task
        return probe_joined(worker, client_state.groups.get(OWN, worker.body.initial)), client_state
        yield  # a Talk that asks nothing

    def _template(self) -> Knowledge:
        """Return the shapes that predictions must have; the numbers are not used."""
        body, public = self.server.body, self.server.public
        dtype, whole = wide(body.dtype), body.classes or body.vocabulary
        positions = sum(int(s.sum()) for s in public.scored) if public.scored else len(public)
        k = named(self.options, body.classes, body.vocabulary)
        if k is None:
            return dense(torch.zeros(positions, whole, dtype=dtype))
        return Knowledge(
            values=torch.zeros(positions, k, dtype=dtype),
            ids=torch.zeros(positions, k, dtype=torch.int64),
            tail=torch.zeros(positions, dtype=dtype),
            vocabulary=whole,
        )


def _other_tokens(setting: ModeSetting[Any]) -> str | None:
    """Return why predictions on tokens cannot be compared, or None when they can."""
    ours = setting.body
    known = ours.tokenizer.get_vocab()
    for client, body in setting.models():
        if body is not ours and body.tokenizer.get_vocab() != known:
            return (
                f"client {client} uses a tokenizer unlike the server's, and predictions on tokens "
                "cannot be averaged across tokenizers; give all clients models of one tokenizer, "
                "or use a classify task"
            )
    return None
