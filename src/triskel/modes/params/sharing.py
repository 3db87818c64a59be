"""Which tensors of an adapter train and travel in a round, and in which form.

    both     A and B train and travel                        FedIT, Zhang et al. 2023, 2305.05644
    ffa      B trains and travels, A stays as it began       FFA-LoRA, Sun et al. 2024, 2403.12313
    fedsa    A and B train, A travels, B stays               FedSA, Guo et al. 2024, 2410.01463
    rolora   in odd rounds as `ffa`; in even ones A trains   RoLoRA, Chen et al. 2024, 2409.02346
             and travels, and B does not
    fedsb    in round 1 as `both`; then a core  Singhal et al. 2025, 2502.15436
             between A and B (`core`)

A client whose rank rᵢ is below the server's has the first rᵢ components: beside zeros and at its
own scale sᵢ, or beside the others, which do not train (`model.reparametrisation`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from triskel.config.sections import Adapter
from triskel.core.aggregate_spec import Ranks
from triskel.model.adapters import scale_of
from triskel.model.reparametrisation import PLAIN, Form, cut, is_core, is_down, is_up, rank_axis
from triskel.model.side_factors import is_side
from triskel.model.slots import Layout
from triskel.modes.params.core import CORED, cored, has_cores, with_cores
from triskel.modes.params.spec import ParamsOptions
from triskel.types import ClientId, Tensors

Part = str
"""`down`: factors A; `up`: factors B; `core`: what is between them; `head`: the task head; `rest`:
tensors of other adapters."""
TURNS: Mapping[int, Part] = {1: "up", 0: "down"}
"""Which factors RoLoRA trains, by the round's parity."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What trains and travels.

    Attributes:
        options: The job's.
        layout: Which tensors are the head's, and the scale of the server's factors.
        adapter: The server's adapter.
        ranks: Of clients whose factors have a lower rank.
        beside: What becomes of components that such a client does not have.
    """

    options: ParamsOptions
    layout: Layout
    adapter: Adapter = field(default_factory=Adapter)
    ranks: Mapping[ClientId, int] = field(default_factory=dict[ClientId, int])
    beside: Ranks = "one"

    def part(self, name: str) -> Part:
        """Return which part a tensor belongs to."""
        if name in self.layout.head:
            return "head"
        kinds = {"down": is_down, "up": is_up, "core": is_core}
        return next((part for part, holds in kinds.items() if holds(name)), "rest")

    @property
    def stay(self) -> frozenset[Part]:
        """Parts that never leave their client."""
        staying = {"up": self.options.trains == "fedsa", "head": self.options.head == "local"}
        return frozenset(part for part in ("up", "head") if staying[part])

    @property
    def frozen(self) -> bool:
        """Whether there is a part that does not train in every round."""
        return self.options.trains in {"ffa", "rolora", "fedsb"}

    def cored(self, round_: int) -> bool:
        """Return whether cores stand between the factors in a round."""
        return self.options.trains == "fedsb" and round_ > 1

    def trained(self, names: Iterable[str], round_: int) -> list[str]:
        """Return which of these train at a client in a round."""
        still: set[Part] = set()
        if self.options.trains == "ffa":
            still = {"down"}
        if self.options.trains == "rolora":
            still = {TURNS[(round_ + 1) % 2]}
        if self.cored(round_):
            still = {"down", "up"}
        return [n for n in names if not is_side(n) and self.part(n) not in still]

    def sent(self, names: Iterable[str], round_: int) -> list[str]:
        """Return which of these are in a client's update."""
        return [n for n in self.trained(names, round_) if self.part(n) not in self.stay]

    def form(self, client: ClientId, names: Collection[str], round_: int) -> Form:
        """Return what a client's model takes of the tensors that train, and which do.

        Args:
            client: Whose.
            names: Of all tensors of the adapter and head.
            round_: The round.
        """
        trained = self.trained(names, round_)
        every = None if len(trained) == len(names) else frozenset(trained)
        rank = self.rank(client)
        if not rank:
            return replace(PLAIN, trains=every, core=self.cored(round_))
        ratio = self.scale(client) / self.layout.scale
        return Form(trains=every, rank=rank, full=self.adapter.rank, ratio=ratio)

    def rank(self, client: ClientId) -> int:
        """Return the rank of a client's factors where it is lower than the server's; else 0."""
        own = self.ranks.get(client, 0)
        return own if own < self.adapter.rank else 0

    def scale(self, client: ClientId) -> float:
        """Return what the product of a client's factors is multiplied by."""
        rank = self.rank(client)
        if not rank or self.beside == "rest":
            return self.layout.scale
        return scale_of(self.adapter.model_copy(update={"rank": rank}))

    def laid_out(self, client: ClientId) -> Layout:
        """Return the layout of what a client and the server exchange."""
        return replace(self.layout, scale=self.scale(client))

    def after(self, tensors: Tensors, closed: int) -> Tensors:
        """Return what the server's tensors become once a round closed."""
        return cored(tensors) if self.cored(closed + 1) and not has_cores(tensors) else tensors

    def known(self, tensors: Tensors, round_: int) -> Tensors:
        """Return tensors of the names and shapes that the server has in a round."""
        return with_cores(tensors) if self.cored(round_) else tensors

    def down(self, tensors: Tensors, client: ClientId) -> Tensors:
        """Return the server's tensors as they go to a client: fewer components of factors."""
        if not self.rank(client) or self.beside == "rest":
            return tensors
        return self.up(tensors, client)

    def up(self, tensors: Tensors, client: ClientId) -> Tensors:
        """Return the server's tensors in the form of a client's update."""
        if not (rank := self.rank(client)):
            return tensors
        ratio = self.layout.scale / self.scale(client)
        return cut(tensors, rank, ratio)

    def own_form(self, tensors: Tensors) -> Form:
        """Return the form of what a client kept, as its names and shapes tell it."""
        if has_cores(tensors):
            return CORED
        for name, tensor in tensors.items():
            axis = rank_axis(name)
            if axis is not None and tensor.shape[axis] < self.adapter.rank:
                rank = tensor.shape[axis]
                own = scale_of(self.adapter.model_copy(update={"rank": rank}))
                return Form(rank=rank, full=self.adapter.rank, ratio=own / self.layout.scale)
        return PLAIN
