"""Members of parameter exchange that the study plays (`params.py`), and what they are on a job.

By family: what trains and travels, how factors are aggregated, what clients and the server do
beside it, models of clients' own, small messages, seeds in the place of tensors, robust rules.
"""

import json
from collections.abc import Mapping

REFERENCE = "mean"
Member = tuple[str, ...]
"""Settings of a job."""


def choice(key: str, name: str, **options: object) -> str:
    """Return the setting that chooses something by name, with options.

    >>> choice("params.local", "fedprox", strength=0.1)
    'params.local={name = "fedprox", strength = 0.1}'
    """
    inner = "".join(f", {k} = {json.dumps(v)}" for k, v in options.items())
    return f'{key}={{name = "{name}"{inner}}}' if inner else f'{key}="{name}"'


def small(up: str, down: str) -> Member:
    """Return the settings of codecs."""
    return (f"wire.up={up}", f"wire.down={down}")


ROUNDS = 4
"""Of every job here, each of one epoch; fewer rounds have as many passes over the texts."""
CORE = ('params.trains="fedsb"',)
DILOCO = (
    'params.moments="kept"', 'params.server_optimizer="nesterov"', "params.server_lr=0.7",
    "params.server_momentum=0.5",
)  # fmt: skip
FAMILIES: Mapping[str, Mapping[str, Member]] = {
    "what trains": {
        REFERENCE: (),
        **{n: (f'params.trains="{n}"',) for n in ("ffa", "fedsa", "rolora", "fedsb")},
        "head": ('params.head="local"',),
    },
    "product space": {
        n: (choice("params.aggregate", n),)
        for n in ("fedex", "flora", "flexlora", "raflora", "florist", "hetlora", "lora_fair")
    }
    | {"fedsvd": ('params.trains="ffa"', 'params.aggregate="fedsvd"')},
    "clients": {
        "fedprox": (choice("params.local", "fedprox", strength=0.1),),
        "scaffold": ('params.local="scaffold"',),
        "fedadamw": ('params.local="fedadamw"',),
        "fednova": ('params.aggregate="fednova"',),
        "kept moments": ('params.moments="kept"',),
    },
    "server": {
        "fedavgm": ("params.server_momentum=0.5",),
        "diloco": DILOCO,
        **{
            f"fed{n}": (
                f'params.server_optimizer="{n}"', "params.server_lr=0.01",
                f"params.server_momentum={0.0 if n == 'adagrad' else 0.9}",
            )
            for n in ("adam", "yogi", "adagrad")
        },
    },
    "models of their own": {
        "mr_mtl": (choice("params.local", "mr_mtl", strength=0.1),),
        "ditto": (choice("params.local", "ditto", strength=0.1),),
        "pfedme": (choice("params.local", "pfedme", strength=1.0, inner=2, rate=0.5),),
        "finetune": ('params.local="finetune"',),
    },
    "small": {
        "bf16": small('"bf16"', '"bf16"'),
        "int8": small('"int8"', '"int8"'),
        "int4": small('"int4"', '"int4"'),
        "sign": small('"sign"', '"sign"'),
        "topk 1/50": small('{name = "topk", share = 0.02}', '{name = "topk", share = 0.02}'),
        "topk 1/200": small('{name = "topk", share = 0.005}', '{name = "topk", share = 0.005}'),
        "fedsb, int4": (*CORE, *small('"int4"', '"int4"')),
        "one round, int4": ("rounds=1", f"train.epochs={ROUNDS}", *small('"int4"', '"int4"')),
        "two rounds, int4": ("rounds=2", f"train.epochs={ROUNDS // 2}", *small('"int4"', '"int4"')),
        "diloco, int4": (*DILOCO, *small('"int4"', '"int4"')),
        "diloco, sign": (*DILOCO, *small('"sign"', '"sign"')),
    },
    "seeds": {  # about twice the compute of four epochs with gradients
        n: (choice("params.exchange", n, steps=25),) for n in ("fedkseed", "fedmezo")
    },
    "robust": {
        n: (choice("params.aggregate", n),)
        for n in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_clip")
    },
}  # fmt: skip
SILO_OPTIONS = {n: (choice("params.aggregate", n, attackers=0),) for n in ("krum", "multi_krum")}
"""Four silos are too few for Krum with an attacker."""

SEED_RATES = (5e-4, 1e-3, 2e-3)
"""What members that send seeds begin with: their rate is a key of their own."""

BEST = (
    REFERENCE, "head", "flexlora", "kept moments", "diloco", "pfedme", "sign", "one round, int4",
    "fedkseed", "norm_clip",
)  # fmt: skip
"""Of each family the one with the lowest validation loss on the silos: of small messages two of
less than a twentieth of fp32's bytes."""

LOWEST = 4
MIXED = tuple(f"clients.each.{silo}.rank={rank}" for silo, rank in (
    ("tweets", LOWEST), ("editorials", 8), ("products", 16)))  # fmt: skip
"""Ranks of three silos; the fourth has the model's, 32."""
RANKS: Mapping[str, Member] = {
    f"rank {LOWEST}": (f"adapter.rank={LOWEST}", f"adapter.alpha={2 * LOWEST}"),
    **{
        n: ("adapter.rank=32", "adapter.alpha=64", *MIXED, choice("params.aggregate", n))
        for n in ("hetlora", "flexlora", "raflora", "florist", "flora")
    },
}
"""Everybody at the lowest rank, and clients of rank 4, 8, 16 and 32."""
