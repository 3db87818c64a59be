"""What does a federation on NVIDIA FLARE cost beside its work, and beside raw gRPC?

A server and three sites on this machine with mutual TLS and a model of width 512 whose computing is
small beside its messages. Measured in turn, on the same bytes, between as many processes:

    asks      `split` asks a second and MB/s (both ways), small and large, against gRPC unary calls
              that echo the payload, and against the same job in one process: the engine's figure
              has the model, packing and audit log in it
    rounds    seconds of a `params` round with about 1, 50 and 200 MB of adapter, against the same
              bytes down as a reply and up as a request over gRPC
    trivial   seconds of a round of one tiny batch, against the same round in one process

Every process has one thread, since four of them share the processors.

    python benchmarks/flare.py --out benchmarks/results/flare.json
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import grpc
import measure
import torch
from field import SITES, Field, rounds, started, tiny

from triskel.config.job import ModeName
from triskel.config.read import load
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run
from triskel.federation import kits

WIDTH, TOKENS = 512, 30
LARGEST = 1 << 30
CHANNEL = [("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", LARGEST)]
MB = 1_000_000
ASKS = {"small": 1, "large": 16}
"""Texts of a batch: about 60 kB and 1 MB an ask."""
RANKS = {"1mb": 40, "50mb": 2000, "200mb": 8000}
KEYS = {
    "rounds": "3",
    "model.dtype": '"float32"',
    "train.max_tokens": str(TOKENS),
    "wire.max_mb": "256.0",
    "split.cut": "[1, 2]",
}


# --- Raw gRPC with the federation's own certificates ------------------------------------------


def serve(kit: str, port: Any, stop: Any) -> None:
    """Echo what comes, or return as many bytes as are asked for."""

    def echo(data: bytes, _context: object) -> bytes:
        return data

    def give(size: bytes, _context: object) -> bytes:
        return bytes(int(size))

    def take(data: bytes, _context: object) -> bytes:
        return str(len(data)).encode()

    start = Path(kit) / "startup"
    server = grpc.server(ThreadPoolExecutor(8), options=CHANNEL)
    handlers = {f.__name__: grpc.unary_unary_rpc_method_handler(f) for f in (echo, give, take)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw", handlers),))
    credentials = grpc.ssl_server_credentials(
        [((start / "server.key").read_bytes(), (start / "server.crt").read_bytes())],
        (start / "rootCA.pem").read_bytes(),
        require_client_auth=True,
    )
    port.value = server.add_secure_port("localhost:0", credentials)
    server.start()
    stop.wait()
    server.stop(0)


def speak(kit: str, port: int, size: int, times: int, ready: Any, seconds: Any) -> None:
    """Make so many calls when all are ready; say how long they took."""
    start = Path(kit) / "startup"
    credentials = grpc.ssl_channel_credentials(
        (start / "rootCA.pem").read_bytes(),
        (start / "client.key").read_bytes(),
        (start / "client.crt").read_bytes(),
    )
    with grpc.secure_channel(f"localhost:{port}", credentials, CHANNEL) as channel:
        data = bytes(size)
        call = {name: channel.unary_unary(f"/raw/{name}") for name in ("echo", "give", "take")}
        call["echo"](b"x")
        ready.wait()
        begin = time.perf_counter()
        for _ in range(times):
            if times > 1:
                call["echo"](data)
            else:
                call["give"](str(size).encode())
                call["take"](data)
        seconds.value = time.perf_counter() - begin


def raw(there: Field, size: int, times: int) -> float:
    """Return the seconds that the slowest of three clients needs for its calls."""
    spawn = multiprocessing.get_context("spawn")
    port, stop = spawn.Value("i", 0), spawn.Event()
    (server,) = kits.nodes_in(there.folder, ["server"])
    host = spawn.Process(target=serve, args=(str(server.path), port, stop))
    host.start()
    while not port.value:
        time.sleep(0.05)
    ready = spawn.Barrier(len(SITES["SITES"]))
    found = [spawn.Value("d", 0.0) for _ in SITES["SITES"]]
    clients = [
        spawn.Process(
            target=speak, args=(str(kit.path), port.value, size, times, ready, seconds)
        )
        for kit, seconds in zip(
            kits.nodes_in(there.folder, SITES["SITES"]), found, strict=True
        )
    ]  # fmt: skip
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    stop.set()
    host.join()
    return max(seconds.value for seconds in found)


# --- The engine -------------------------------------------------------------------------------


def played(there: Field, mode: str, out: str, sets: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the rounds of a job after its first, which loads and counts."""
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return rounds(there.submit([mode], out, *words), mode)[1:]


def alone(there: Field, mode: ModeName, out: str, sets: Mapping[str, object]) -> list[Any]:
    """Return the rounds of the same job in this process, after its first."""
    job = load(there.job, [f"{key}={value}" for key, value in sets.items()])
    request = Request(modes=(mode,), baselines=())
    found = run(job, request, there.home / out, LocalEngine(job), lambda _: None)
    return list(found["modes"][mode]["rounds"][1:])


def asks(there: Field, name: str, turn: int) -> dict[str, float]:
    """Return asks a second and MB/s of both, their ratio, and a site's share of computing."""
    sets = {"train.batch": ASKS[name]}
    rows = played(there, "split", f"asks-{name}-{turn}", sets)
    here = sum(row["seconds"] for row in alone(there, "split", f"asks-here-{name}-{turn}", sets))
    count = size = 0
    seconds = busy = 0.0
    for row in rows:
        for one in row["clients"].values():
            talk = one["up"]["messages"] - 1  # without the update
            count += talk
            size += one["up"]["message_bytes"] + one["down"]["message_bytes"]
            busy += one["compute_s"] / len(row["clients"])
        seconds += row["seconds"]
    each = size // (2 * count)
    times = count // len(SITES["SITES"]) // len(rows)
    lone = raw(there, each, times)
    rate, plain = count / seconds, times * len(SITES["SITES"]) / lone
    return {
        f"asks_{name}_per_s": rate,
        f"asks_{name}_mb_per_s": size / MB / seconds,
        f"asks_{name}_bytes": each,
        f"asks_{name}_computing_share": busy / seconds,
        f"asks_{name}_one_process_per_s": count / here,
        f"asks_{name}_grpc_per_s": plain,
        f"asks_{name}_grpc_mb_per_s": plain * 2 * each / MB,
        f"asks_{name}_over_grpc": rate / plain,
    }


def large(there: Field, name: str, turn: int) -> dict[str, float]:
    """Return the seconds of a round of large updates, and what is beside the slowest client."""
    sets = {"adapter.rank": RANKS[name], "train.batch": 16}
    rows = played(there, "params", f"round-{name}-{turn}", sets)
    size = max(one["up"]["message_bytes"] for one in rows[-1]["clients"].values())
    whole = mean(row["seconds"] for row in rows)
    beside = mean(
        row["seconds"] - max(one["compute_s"] for one in row["clients"].values()) for row in rows
    )
    lone = raw(there, size, 1)
    return {
        f"round_{name}_s": whole,
        f"round_{name}_bytes": size,
        f"round_{name}_beside_training_s": beside,
        f"round_{name}_grpc_s": lone,
    }


def trivial(there: Field, turn: int) -> dict[str, float]:
    """Return the seconds of a round of next to no work, between processes and in one."""
    sets = {"clients.examples": 4, "rounds": 12}
    rows = played(there, "params", f"trivial-{turn}", sets)
    local = alone(there, "params", f"trivial-here-{turn}", sets)
    return {
        "trivial_s": median(row["seconds"] for row in rows),
        "trivial_local_s": median(row["seconds"] for row in local),
    }


def allow(there: Field) -> None:
    """Let more leave in a round than policies do by themselves."""
    for policy in there.kits.glob("*/local/policy.toml"):
        wider = policy.read_text().replace("[limits]", "[limits]\nround_mb = 4000.0")
        policy.write_text(wider)


def main() -> None:
    """Measure in turn, and write the JSON."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--turns", type=int, default=3)
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the nodes
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    small = SITES["small"]
    with tempfile.TemporaryDirectory(prefix="triskel-flare-") as name:
        home = Path(name)
        wide = {"hidden_size": WIDTH, "num_attention_heads": 8, "num_key_value_heads": 8}
        model = small["save_model"](home / "wide", **wide, intermediate_size=128)
        shape: dict[str, Any] = {"model": model, "rows": (64, 64, 64), "longest": TOKENS + 10}
        made = tiny(home, KEYS, **shape)
        allow(made)
        with started(made) as there:
            for turn in range(1 if chosen.quick else chosen.turns):
                for row in (
                    *(asks(there, one, turn) for one in ASKS),
                    *(large(there, one, turn) for one in RANKS if not chosen.quick),
                    trivial(there, turn),
                ):
                    for figure, value in row.items():
                        found.setdefault(figure, []).append(value)
    measure.report("flare", found, seed=chosen.seed, out=chosen.out)


if __name__ == "__main__":
    main()
