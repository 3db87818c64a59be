"""How much of a round's time does metering take, once its formulas are known and the first time?

The same round is played with the meter and with one that does nothing, in turn. `*_share` is
metered / unmetered - 1, which cannot tell less than a round's own spread; `*_inside` is the share
of a metered round that is spent within the meter and the ledger, by the clock. The design allows
0.02. `*_first_s` is what counting a mode's pieces costs
once in a run, and `*_first_share` sets it against one round of this benchmark.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

from triskel.config.job import ModeName
from triskel.config.read import load
from triskel.data.assets import cache_folder
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import LocalResources, prepare
from triskel.model.flops import Piece
from triskel.model.meter import Costs, Meter
from triskel.modes.split.cut import cut_of
from triskel.training.mode_setting import mode_of
from triskel.training.worker import Worker
from triskel.types import Batch
from triskel.wire.ledger import Ledger

MODES: tuple[ModeName, ...] = ("params", "split")
ASSET = "smollm2-135m"


class Null(Meter):
    """A meter that does nothing."""

    def ran(self, batch: Batch, *pieces: Piece, training: object = None, held: int = 0) -> None:
        """Take no note."""


@dataclasses.dataclass
class Clock:
    """Adds up the seconds within calls."""

    seconds: float = 0.0

    def timed(self, call: Callable[..., None]) -> Callable[..., None]:
        """Return the call, with its time taken."""

        def work(*args: Any, **more: Any) -> None:
            start = time.perf_counter()
            call(*args, **more)
            self.seconds += time.perf_counter() - start

        return work


def quiet(_: object) -> None:
    """Tell nobody."""


def played(
    resources: LocalResources, mode: ModeName, client: str, *, metered: bool
) -> Callable[[], None]:
    """Return one round of a mode with one client, as a call."""
    it, engine, body = (
        mode_of(resources.setting(mode, quiet)),
        LocalEngine(resources.job),
        resources.body(),
    )

    def worker(name: str) -> Worker:
        hand = resources.worker(name, quiet)
        return (
            hand
            if metered
            else dataclasses.replace(hand, meter=Null(body, resources.models.costs(body)))
        )

    def work() -> None:
        engine.round(
            it,
            it.start(),
            [client],
            worker=worker,
            client_states={},
            keep=lambda client, state: None,  # noqa: ARG005 - nothing is kept
            ledger=Ledger(),
            watch=quiet,
        )

    return work


def inside(resources: LocalResources, mode: ModeName, client: str) -> float:
    """Return the share of a round that is spent within the meter and the ledger."""
    it, engine, clock, ledger = (
        mode_of(resources.setting(mode, quiet)),
        LocalEngine(resources.job),
        Clock(),
        Ledger(),
    )
    for name in ("sent", "computed"):
        setattr(ledger, name, clock.timed(getattr(ledger, name)))

    def worker(name: str) -> Worker:
        hand = resources.worker(name, quiet)
        hand.meter.ran = clock.timed(hand.meter.ran)  # type: ignore[method-assign]
        return hand

    whole = measure.seconds(
        lambda: engine.round(
            it, it.start(), [client], worker=worker, client_states={},
            keep=lambda client, state: None,  # noqa: ARG005
            ledger=ledger, watch=quiet,
        )
    )  # fmt: skip
    return clock.seconds / whole


def first(resources: LocalResources, mode: ModeName, client: str) -> Callable[[], None]:
    """Return the counting of all pieces of a mode, as a call."""
    body = resources.body()
    pieces: tuple[Piece, ...] = (Piece("train"),)
    if mode == "split":
        pieces = cut_of(resources.job, body, client).pieces(body.blocks.count)

    def work() -> None:
        costs = Costs(body)
        for piece in pieces:
            _ = costs[piece]

    return work


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--client", default="films")
    options.add_argument(
        "--model", default="", help="a folder, where the asset is not in the cache"
    )
    options.add_argument("--set", action="append", default=[], help="section.key=value")
    chosen = options.parse_args()
    if not chosen.model and not (cache_folder() / ASSET).is_dir():
        options.error(f"{ASSET} is not in {cache_folder()}; name a model folder with --model")
    texts = 16 if chosen.quick else 192
    sets = ["adapter.blocks=all", f"clients.examples={texts}", f"seed={chosen.seed}"]
    sets += [f"model.path={Path(chosen.model).resolve()}"] if chosen.model else []
    resources = prepare(load(None, [*sets, *chosen.set]), quiet)
    figures: dict[str, list[float]] = {}
    for mode in MODES:
        works = {
            "on": played(resources, mode, chosen.client, metered=True),
            "off": played(resources, mode, chosen.client, metered=False),
        }
        times = measure.in_turn(works, times=3 if chosen.quick else 11)
        counting = [
            measure.seconds(first(resources, mode, chosen.client))
            for _ in range(1 if chosen.quick else 3)
        ]
        figures[f"{mode}_share"] = [r - 1 for r in measure.ratios(times["on"], times["off"])]
        figures[f"{mode}_inside"] = [inside(resources, mode, chosen.client) for _ in range(3)]
        figures[f"{mode}_first_s"] = counting
        figures[f"{mode}_first_share"] = [c / min(times["off"]) for c in counting]
    held = len(resources.tokens.share(chosen.client).train)
    measure.report("metering", figures, seed=chosen.seed, out=chosen.out, texts=held)


if __name__ == "__main__":
    main()
