"""What an aggregate is to everybody but who adds up: a value, which imports no torch."""

from dataclasses import dataclass
from typing import Literal

from triskel.core.mode_spec import NAME
from triskel.core.options import Options

Ranks = Literal["one", "cut", "rest"]
"""What becomes of a client whose factors have a lower rank than the server's."""


@dataclass(frozen=True, kw_only=True)
class AggregateSpec:
    """One way to make one update of many.

    Attributes:
        name: Lower-case letters, digits and `_`: what an option such as `params.aggregate` says,
            the name of the entry point where it is of another package.
        gloss: In a few words, what it computes.
        algorithm: `package.module:name` of what makes a `types.Aggregate`, as its class, called
            without arguments, or with its options where it has some.
        linear: The result is a linear function of the updates, so that a sum of them is enough
            (secure aggregation).
        keeps_updates: It keeps every update until the round closes, as robust rules must: a round
            takes the memory of all of them, and the server sees each.
        side_factors: It may make frozen low-rank factors beside those that train (a section `side`
            of its value), so the adapter must be one of low-rank factors and nothing else.
        steps: It asks how many local steps an update is of.
        lowrank: It works on products of low-rank factors, so the adapter must be of these as well.
        ranks: `one`: all clients must have the server's rank. `cut`: a client gets the first
            components of the server's factors, as many as its rank. `rest`: it gets the others too,
            as side factors, which it does not train.
        trains: What of the adapter clients must train (`params.trains`); empty: whatever.
        options: What may be set beside its name (`core.choice`); every field has a default and a
            description.
    """

    name: str
    gloss: str
    algorithm: str
    linear: bool = False
    keeps_updates: bool = False
    side_factors: bool = False
    steps: bool = False
    lowrank: bool = False
    ranks: Ranks = "one"
    trains: str = ""
    options: type[Options] = Options

    def __post_init__(self) -> None:
        """Refuse what nobody could name, or what cannot be.

        Raises:
            ValueError: The name is not what it must be, or a sum is said to keep what it adds.
        """
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"the name of an aggregate must match {NAME.pattern}, got {self.name!r}"
            )
        if self.linear and self.keeps_updates:
            raise ValueError(f"aggregate {self.name}: a sum need not keep the updates it adds")
