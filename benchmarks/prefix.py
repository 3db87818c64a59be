"""What does keeping the hidden states below the first trained block gain, from the second epoch?

The same `params` round with adapters in the top half (`half`) and the top quarter (`quarter`) of
the blocks, with hidden states kept and computed again, in turn. `*_loss_gap` is the largest
difference between the losses of the two, step by step, over three rounds from the same start;
`*_bytes_per_token` is what is kept. Timed in the dtype that `auto` takes; in bfloat16 a text's
hidden states round a little differently with the texts it is batched with, and
`*_loss_gap_float32` is the same gap in float32.
"""

from collections.abc import Callable

import measure
from overhead import quiet

from triskel.aggregate.mean import Mean
from triskel.config.read import load
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import LocalResources, prepare
from triskel.model.hidden_cache import HiddenCache
from triskel.modes.params.mode import Params
from triskel.types import Event
from triskel.wire.ledger import Ledger

SHARES = {"half": 2, "quarter": 4}


def rounds(
    resources: LocalResources, client: str, prefix: HiddenCache | None, times: int
) -> list[float]:
    """Play some rounds from the start; return the loss of every step."""
    body = resources.body()
    body.prefix = prefix
    mode, losses = (
        Params(aggregate=Mean(), initial=body.initial, layout=body.layout),
        list[float](),
    )

    def watch(event: Event) -> None:
        if event["event"] == "step":
            losses.append(event["loss"])

    state = mode.start()
    for _ in range(times):
        state = LocalEngine(resources.job).round(
            mode,
            state,
            [client],
            worker=lambda name: resources.worker(name, watch),
            client_states={},
            keep=lambda *_: None,
            ledger=Ledger(),
            watch=quiet,
        )
    return losses


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--client", default="films")
    chosen = options.parse_args()
    texts = 32 if chosen.quick else 128
    figures: dict[str, list[float]] = {}
    for name, share in SHARES.items():
        sets = [f"clients.examples={texts}", f"seed={chosen.seed}"]
        resources = prepare(load(None, sets), quiet)
        blocks = resources.body().blocks.count
        top = -(-blocks // share)
        resources = prepare(load(None, [*sets, f"adapter.blocks=top:{top}"]), quiet)
        kept = HiddenCache()
        with_, without = (rounds(resources, chosen.client, p, 3) for p in (kept, None))
        examples = resources.tokens.share(chosen.client).train
        tokens = sum(len(ids) for ids in examples.ids)

        def work(
            prefix: HiddenCache | None, resources: LocalResources = resources
        ) -> Callable[[], object]:
            return lambda: rounds(resources, chosen.client, prefix, 1)

        works = {"kept": work(kept), "again": work(None)}
        times = measure.in_turn(works, times=3 if chosen.quick else 9)
        figures[name] = measure.ratios(times["again"], times["kept"])
        figures[f"{name}_loss_gap"] = [abs(a - b) for a, b in zip(with_, without, strict=True)]
        exact = prepare(
            load(
                None,
                [*sets, f"adapter.blocks=top:{top}", "model.dtype=float32", "clients.examples=32"],
            ),
            quiet,
        )
        pair = [rounds(exact, chosen.client, p, 2) for p in (HiddenCache(), None)]
        figures[f"{name}_loss_gap_float32"] = [abs(a - b) for a, b in zip(*pair, strict=True)]
        figures[f"{name}_bytes_per_token"] = [kept.size / tokens]
        figures[f"{name}_blocks"] = [float(top)]
    measure.report("prefix", figures, seed=chosen.seed, out=chosen.out, texts=texts)


if __name__ == "__main__":
    main()
