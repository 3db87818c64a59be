"""The texts of a job as tokens: once per client and model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from triskel.config.job import Job
from triskel.core.crash import during
from triskel.data.batches import tokenise
from triskel.data.federate import Federation
from triskel.data.rows import Rows
from triskel.data.tokens import concatenated
from triskel.experiment.models import Models
from triskel.model.shared import SharedModel
from triskel.training.evaluate import Group, grouped
from triskel.types import ClientId, Examples


@dataclass(frozen=True, slots=True)
class Share:
    """One client's tokenised examples."""

    train: Examples
    test: Examples


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Everybody's texts as tokens, made when they are first asked for.

    Attributes:
        job: How texts become tokens.
        federation: Who holds what, as text.
        models: Whose tokens.
    """

    job: Job
    federation: Federation
    models: Models
    _shares: dict[ClientId, Share] = field(default_factory=dict[ClientId, Share])
    _tests: dict[int, Mapping[ClientId, Examples]] = field(
        default_factory=dict[int, Mapping[ClientId, Examples]]
    )
    _groups: dict[int, Sequence[Group]] = field(default_factory=dict[int, Sequence[Group]])
    _public: dict[int, Examples] = field(default_factory=dict[int, Examples])

    def share(self, client: ClientId) -> Share:
        """Return a client's examples as its own model's tokens."""
        if client not in self._shares:
            holding, body = self.federation.clients[client], self.models.reader(client)
            self._shares[client] = Share(
                train=self._tokens(holding.train, body), test=self._tokens(holding.test, body)
            )
        return self._shares[client]

    def tests(self, body: SharedModel) -> Mapping[ClientId, Examples]:
        """Return every client's test share as one model's tokens."""
        if id(body) not in self._tests:
            self._tests[id(body)] = {
                c: self.share(c).test
                if self.models.whose(c, body)
                else self._tokens(self.federation.clients[c].test, body)
                for c in sorted(self.federation.clients)
            }
        return self._tests[id(body)]

    def groups(self, body: SharedModel) -> Sequence[Group]:
        """Return every client's test share as one model's tokens, small ones together."""
        if id(body) not in self._groups:
            self._groups[id(body)] = grouped(self.tests(body))
        return self._groups[id(body)]

    def public(self, body: SharedModel) -> Examples:
        """Return the public set as a model's tokens; its labels are unknown."""
        if id(body) not in self._public:
            self._public[id(body)] = self._tokens(self.federation.public, body)
        return self._public[id(body)]

    def pooled(self) -> Share:
        """Return all clients' examples together, in the order of their names, as server tokens."""
        body = self.models.body()
        train = [
            self.share(c).train
            if self.models.whose(c, body)
            else self._tokens(self.federation.clients[c].train, body)
            for c in sorted(self.federation.clients)
        ]
        tests = list(self.tests(body).values())
        return Share(train=concatenated(train), test=concatenated(tests))

    def _tokens(self, rows: Rows, body: SharedModel) -> Examples:
        known, key = self.models.loaded.tokens, (id(body), rows)
        if key not in known:
            classes = self.federation.classes
            with during("while making tokens of texts"):
                known[key] = tokenise(rows, body.tokenizer, job=self.job, classes=classes)
        return known[key]
