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
COST = {
    "params": (2_900_000_000_000, 1_310_000_000, 11.8, 2),
    "logits": (4_100_000_000_000, 1_360_000_000, 15.2, 3),
    "split": (620_000_000_000, 410_000_000, 4.9, 104),
}


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
                        "flops": flops * (100 + 3 * (i % 5)) // 100,
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


# --- Results with both columns and tests ------------------------------------------------------

OWN = {"params": 0.0, "logits": 0.12, "split": 0.0}
"""By how much clients' own models do better on own texts than the common one on everybody's."""


def modern(*, sure: float = 0.05, **shape: Any) -> dict[str, Any]:  # noqa: ANN401 - as of `result`
    """Return a result with both columns, server FLOPs, an equal baseline, tests and readings.

    Rows further apart than `sure` are called beyond chance, clients further than `3 * sure`.
    """
    found = columned(result(**shape))
    causal = found["job"]["data"]["task"] == "causal"
    return found | {"summary": summary([found], sure=sure, causal=causal)}


def columned(found: dict[str, Any]) -> dict[str, Any]:
    """Give a result both columns and what the server computed."""
    causal = found["job"]["data"]["task"] == "causal"
    base = found["baselines"]
    for name, one in base.items():
        plain = {k: v for k, v in one.items() if k in {"accuracy", "macro_f1", "loss"}}
        plain |= {k: one[k] for k in ("perplexity", "token_accuracy") if k in one}
        one["own"] = plain
        one["everybody"] = scores(0.431, causal=causal) if name == "local" else plain
    local = base.get("local")
    if local:
        local["client_flops"] = 2_100_000_000_000 * len(local["per_client"])
        equal = {c: shifted(0.69, i) for i, c in enumerate(local["per_client"])}
        base["local_equal"] = {
            **scores(0.69, causal=causal),
            "mode": "logits",
            "everybody": scores(0.447, causal=causal),
            "own": scores(0.69, causal=causal),
            "per_client": {c: scores(v, causal=causal) for c, v in equal.items()},
            "client_flops": 4_200_000_000_000 * len(equal),
            "seconds": 71.0,
        }
    for name, one in found["modes"].items():
        for row in one["rounds"]:
            level = row["accuracy"]
            row["own"] = scores(min(0.99, level + OWN[name]), causal=causal)
            row["server"] = {"flops": 3_300_000_000_000 if name != "params" else 0}
            for client, score in row["per_client"].items():
                count = score["examples"]
                better = min(0.99, score["accuracy"] + OWN[name])
                row["per_client"][client] = {**scores(better, causal=causal), "examples": count}
        if one["rounds"]:
            last = one["rounds"][-1]
            keys = ("accuracy", "macro_f1", "loss", "perplexity", "token_accuracy")
            one["final"] |= {
                "everybody": {k: last[k] for k in keys if k in last},
                "own": last["own"],
            }
            one["totals"]["server_flops"] = sum(row["server"]["flops"] for row in one["rounds"])
    return found


def summary(
    runs: list[dict[str, Any]], *, sure: float = 0.05, causal: bool = False, half: float = 0.03
) -> dict[str, Any]:
    """Return what tests might say: rows further apart than `sure` are beyond chance."""
    figure, key = ("perplexity", "loss") if causal else ("accuracy", "accuracy")

    def end(run: dict[str, Any], row: str) -> dict[str, Any]:
        return run["modes"][row]["final"] if row in run["modes"] else run["baselines"][row]

    def mean(row: str, column: str, what: str) -> float:
        return sum(end(run, row)[column][what] for run in runs) / len(runs)

    names = [*runs[0]["baselines"], *runs[0]["modes"]]
    told: dict[str, Any] = {"figure": figure, "level": 0.95, "differences": [], "clients": {}}
    for row in names:
        told[row] = {}
        for column in ("everybody", "own"):
            at = mean(row, column, figure)
            wide = half * (10 if causal else 1)
            ends = {"low": at - wide, "high": at + wide}
            told[row][column] = {"mean": at, **ends, "n": len(runs)}
    for place, left in enumerate(names):
        for right in names[place + 1 :]:
            for column in ("everybody", "own"):
                far = mean(left, column, key) - mean(right, column, key)
                told["differences"].append(
                    {
                        "left": left,
                        "right": right,
                        "column": column,
                        "figure": key,
                        "difference": far,
                        "low": far - half,
                        "high": far + half,
                        "p": 0.001 if abs(far) > sure else 0.4,
                        "beyond": abs(far) > sure,
                    }
                )
    told["clients"] = clients_told(runs[0], sure=3 * sure, key=key) if "local" in names else {}
    return told


def clients_told(found: dict[str, Any], *, sure: float, key: str) -> dict[str, Any]:
    """Return which clients might gain by a mode."""
    alone = found["baselines"]["local"]["per_client"]
    told: dict[str, Any] = {}
    for mode_, one in found["modes"].items():
        told[mode_] = {}
        for client, score in one["rounds"][-1]["per_client"].items() if one["rounds"] else ():
            far = score[key] - alone[client].get(key, 1.4 - alone[client]["accuracy"])
            gain = -far if key == "loss" else far
            kind = "even" if abs(far) <= sure else "gain" if gain > 0 else "lose"
            ends = {"low": far - sure, "high": far + sure, "p": 0.01, "verdict": kind}
            told[mode_][client] = {"difference": far, **ends}
    return told


def seeds(count: int = 3, *, causal: bool = False, sure: float = 0.05) -> dict[str, Any]:
    """Return a comparison of several seeds, each a little off the last."""
    runs: list[dict[str, Any]] = []
    for seed in range(count):
        one = columned(result(causal=causal))
        one["job"]["seed"] = seed
        for place, row in enumerate(one["modes"].values()):
            drift = 0.012 * (seed - (count - 1) / 2) * (1 + place)
            for round_ in row["rounds"]:
                round_.update(scores(round_["accuracy"] + drift, causal=causal))
                mine = round_["own"]["accuracy"] + drift
                round_["own"] = scores(mine, causal=causal)
            last = row["rounds"][-1]
            row["final"]["everybody"] = {k: last[k] for k in row["final"]["everybody"] if k in last}
            row["final"]["own"] = last["own"]
        runs.append(one)
    return {
        "schema": 2,
        "triskel": "0.1.0",
        "seeds": list(range(count)),
        "runs": runs,
        "summary": summary(runs, sure=sure, causal=causal),
    }
