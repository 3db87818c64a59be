"""Made-up results of the shape a comparison writes, for the tests of the report."""

from typing import Any

CLIENTS = {"social": (400, 150), "shop": (400, 150), "film": (400, 150), "newspaper": (400, 150)}
LABELS = {
    "social": {"negative": 101, "neutral": 80, "positive": 219},
    "shop": {"negative": 131, "neutral": 83, "positive": 186},
    "film": {"negative": 191, "neutral": 21, "positive": 188},
    "newspaper": {"negative": 130, "neutral": 185, "positive": 85},
}
LOCAL = {"social": 0.72, "shop": 0.61, "film": 0.74, "newspaper": 0.57}
SECTIONS = {
    "params": ({"adapter": 1_843_200, "head": 6_912}, {"adapter": 1_843_200, "head": 6_912}),
    "logits": ({"knowledge": 2_400}, {"knowledge": 2_400}),
    "split": (
        {"activations": 29_000_000, "gradients": 20_600_000, "adapter": 245_760, "head": 6_912},
        {"activations": 29_000_000, "gradients": 20_600_000, "adapter": 245_760, "head": 6_912},
    ),
}
CURVES = {
    "params": (0.548, 0.622, 0.653),
    "logits": (0.462, 0.495, 0.503),
    "split": (0.583, 0.681, 0.708),
}
COST = {"params": (2.9e12, 1.31e9, 11.8, 2), "logits": (4.1e12, 1.36e9, 15.2, 3)}
COST["split"] = (0.62e12, 0.41e9, 4.9, 104)


def job(**changed: object) -> dict[str, Any]:
    """Return the default job, as `job.dump` would."""
    return {
        "name": "opinions",
        "mode": "params",
        "seed": 0,
        "rounds": 3,
        "model": {"path": "smollm2-135m", "dtype": "auto", "device": "auto", "attention": "eager"},
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16.0, "targets": [], "blocks": "all"},
        "data": {"task": "classify", "source": "opinions", "test_share": 0.2, "classes": []},
        "clients": {"count": 4, "alpha": 0.5, "cohort": 1.0, "each": {}},
        "train": {"epochs": 1, "batch": 16, "lr": 0.001, "max_tokens": 48},
        "logits": {"public": 200, "temperature": 2.0, "mix": 0.5, "top_k": 8},
        "split": {"labels": "private", "wave": 0},
        "wire": {"up": "fp32", "down": "fp32", "max_mb": 256.0},
        **changed,
    }


def traffic(sections: dict[str, int], messages: int) -> dict[str, Any]:
    """Return one direction of one client in one round."""
    payload = sum(sections.values())
    return {
        "payload_bytes": payload,
        "message_bytes": payload + 412 * messages,
        "messages": messages,
        "sections": {name: {"payload_bytes": count} for name, count in sections.items()},
    }


def mode(name: str, clients: list[str], rounds: int = 3, *, causal: bool = False) -> dict[str, Any]:
    """Return one mode's rounds, totals and final score."""
    up, down = SECTIONS[name]
    flops, peak, seconds, messages = COST[name]
    done: list[dict[str, Any]] = []
    for number in range(rounds):
        level = CURVES[name][min(number, 2)]
        done.append(
            {
                "round": number + 1,
                **scores(level, causal=causal),
                "per_client": {
                    c: {**scores(shifted(level, i), causal=causal), "examples": 150}
                    for i, c in enumerate(clients)
                },
                "clients": {
                    c: {
                        "up": traffic(up, messages),
                        "down": traffic(down, messages),
                        "flops": flops * (1 + 0.03 * (i % 5)),
                        "peak_client_bytes": peak,
                        "compute_s": seconds * (1 + 0.1 * (i % 3)),
                    }
                    for i, c in enumerate(clients)
                },
                "seconds": seconds * len(clients) * 1.1,
            }
        )
    crossed = {
        side: {
            key: sum(c[side][key] for one in done for c in one["clients"].values())
            for key in ("payload_bytes", "message_bytes")
        }
        for side in ("up", "down")
    }
    return {
        "rounds": done,
        "totals": {
            **crossed,
            "client_flops": sum(c["flops"] for one in done for c in one["clients"].values()),
            "peak_client_bytes": peak,
            "seconds": sum(one["seconds"] for one in done),
        },
        "final": scores(CURVES[name][min(rounds, 3) - 1], causal=causal),
    }


def many(count: int, classes: int = 4) -> dict[str, Any]:
    """Return a result of so many clients that it tells what they spent together."""
    held = {f"client-{i:05d}": (4 + (i * i) % 37, 2 + i % 5) for i in range(count)}
    counts = {
        c: {f"intent {(i + j) % classes}": 1 + (i * j) % 9 for j in range(3)}
        for i, c in enumerate(held)
    }
    found = result(held, counts)
    for one in found["modes"].values():
        for row in one["rounds"]:
            clients = row.pop("clients")
            row["slowest"] = {c: clients[c] for c in list(clients)[:2]}
            row["sum"] = {
                **{way: summed([c[way] for c in clients.values()]) for way in ("up", "down")},
                "flops": sum(c["flops"] for c in clients.values()),
                "peak_client_bytes": max(c["peak_client_bytes"] for c in clients.values()),
                "compute_s": sum(c["compute_s"] for c in clients.values()),
                "clients": count,
                "seen": count,
            }
        for row in one["rounds"][:-1]:
            del row["per_client"]
        for i, score in enumerate(one["rounds"][-1]["per_client"].values()):
            score["accuracy"] = min(1.0, score["accuracy"] + 0.2 * ((i * 7919) % 101 - 50) / 50)
    return found


def summed(ways: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one direction of several clients together."""
    total = {k: sum(w[k] for w in ways) for k in ("payload_bytes", "message_bytes", "messages")}
    sections = {
        name: {"payload_bytes": sum(w["sections"][name]["payload_bytes"] for w in ways)}
        for name in ways[0]["sections"]
    }
    return {**total, "sections": sections}


def shifted(level: float, place: int) -> float:
    """Return one client's level around the common one."""
    return min(0.99, max(0.01, level + (0.06, -0.02, 0.05, -0.09)[place % 4]))


def scores(level: float, *, causal: bool = False) -> dict[str, float]:
    """Return an evaluation at some accuracy."""
    if causal:
        loss = 4.2 - 2.4 * level
        return {
            "accuracy": level,
            "token_accuracy": level,
            "loss": loss,
            "perplexity": 2.718281828**loss,
        }
    return {"accuracy": level, "macro_f1": level - 0.04, "loss": 1.4 - level}


def result(
    clients: dict[str, tuple[int, int]] | None = None,
    labels: dict[str, dict[str, int]] | None = None,
    *,
    modes: tuple[str, ...] = ("params", "logits", "split"),
    causal: bool = False,
    rounds: int = 3,
    planned: int = 3,
) -> dict[str, Any]:
    """Return a whole result; everything in it may then be taken away or changed."""
    held = CLIENTS if clients is None else clients
    counts = LABELS if labels is None else labels
    names = list(held)
    task = {"task": "causal", "source": "jsonl", "train": "talks.jsonl", "text": "text"}
    alone = {c: LOCAL.get(c, 0.45 + 0.3 * (i % 7) / 6) for i, c in enumerate(names)}
    level = sum(alone.values()) / len(alone) if alone else 0.66
    return {
        "schema": 1,
        "triskel": "0.1.0",
        "job": job(rounds=planned, **({"data": task} if causal else {})),
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.2.0",
            "peft": "0.18.1",
            "platform": "Linux x86_64",
            "processor": "a laptop's",
            "cores": 8,
            "memory_bytes": 16_700_000_000,
            "device": "cpu",
            "dtype": "bfloat16",
            "commit": "e6d1112",
        },
        "data": {
            "classes": [] if causal else list(dict.fromkeys(n for c in counts.values() for n in c)),
            "public": 200,
            "clients": {
                c: {
                    "train": train,
                    "test": test,
                    "labels": {} if causal else counts.get(c, {}),
                    "words": 15.2 + i % 9,
                }
                for i, (c, (train, test)) in enumerate(held.items())
            },
        },
        "baselines": {
            "base": {
                **scores(0.412, causal=causal),
                "what": "zero-shot" if causal else "majority class",
                "per_client": {c: {"accuracy": 0.4} for c in names},
            },
            "local": {
                **scores(level, causal=causal),
                "global_accuracy": 0.431,
                "per_client": {
                    c: {"accuracy": alone[c], "global_accuracy": alone[c] - 0.2} for c in names
                },
            },
            "central": {
                **scores(0.721, causal=causal),
                "per_client": {c: {"accuracy": shifted(0.721, i)} for i, c in enumerate(names)},
            },
        },
        "skipped": {},
        "modes": {name: mode(name, names, rounds, causal=causal) for name in modes},
    }
