"""What does federated fine-tuning cost in Triskel, beside others doing the same work?

    python benchmarks/peers/run.py --model PATH_OF_A_MODEL --turns 3
    python benchmarks/peers/run.py --peers triskel,flower --many

Equal work: four silos, 160 texts each, two rounds of one epoch, batch 16, LoRA r = 8 on q and v
and a head in float32 on a base in the dtype that `auto` takes, AdamW at 1e-3. `dump.py` fixes
token ids, order, batches and the start, so that losses must agree; every peer ends with an
averaged adapter, which `evaluate.py` scores afterwards. Peers take turns (A B C A B C), each a
process of its own from start to end, in an environment of its own that is made at first use.

`--memory`: the same, with memory sampled and nothing timed, as sampling takes time.

`--many`: clients that send back the adapter they were sent, in growing numbers, until a peer
breaks or one of its rounds takes longer than `--limit`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import environments
import tree

from triskel.data.assets import cache_folder

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import measure  # noqa: E402 - lies one folder up


@dataclass(frozen=True)
class Peer:
    """One way to do the work.

    Attributes:
        environment: Whose Python runs it.
        script: What it runs.
        options: How.
        at_once: Clients that train at the same time.
        many: Whether it is asked for many clients without work; else it differs in work only.
    """

    environment: str
    script: str
    options: tuple[str, ...] = ()
    at_once: int = 1
    many: bool = False


PEERS = {
    "triskel": Peer("triskel", "ours.py", many=True),
    "plain": Peer("transformers", "plain.py", many=True),
    "trainer": Peer("transformers", "plain.py", ("--trainer",)),
    "flower": Peer("flower", "flower.py", at_once=2, many=True),
    "flower-one-actor": Peer("flower", "flower.py", ("--cpus", "2"), many=True),
    "flower-reload": Peer("flower", "flower.py", ("--reload",), at_once=2),
    "flare": Peer("flare", "flare.py", at_once=4, many=True),
}
OTHERS = tuple(name for name in PEERS if name != "triskel")
COUNTS = (10, 100, 1_000, 10_000)
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "20000",  # as Triskel's command line sets it, here for everyone
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
ROOM_MB = 3_000  # memory left on the machine below which a peer is stopped


@dataclass
class Run:
    """What one process did.

    Attributes:
        seconds: Wall clock from start to end.
        rounds: The peer's own account: wall clock, and the clients' training seconds and losses.
        memory: The sampler, where there was one.
        broke: Why it did not end well; empty where it did.
    """

    seconds: float
    rounds: list[dict[str, Any]]
    memory: tree.Sampler | None
    broke: str = ""


def run(  # noqa: PLR0913 - who, on what, and how it is watched
    peer: Peer, source: Path, out: Path, *, cache: Path, sample: bool, limit: float, more: Any = ()
) -> Run:
    """Run a peer from start to end in a new folder.

    Args:
        peer: Which.
        source: Folder of the work, or the model for Triskel, which reads texts itself.
        out: Where rounds and adapter go.
        cache: Where environments are.
        sample: Whether to sample memory.
        limit: Seconds without the end of a round, after which it is stopped.
        more: Further options.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    python = environments.python_of(peer.environment, cache)
    call = [python, HERE / peer.script, source, out, *peer.options, *more]
    sampler = tree.Sampler() if sample else None
    with (out / "log.txt").open("w") as log, sampler or nullcontext():
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in call], env={**os.environ, **SETTINGS}, stdout=log, stderr=log
        )
        why = watched(process, out, limit)
        seconds = time.perf_counter() - start
    sweep(process)
    rounds = out / "rounds.json"
    if not why and (process.returncode or not rounds.exists()):
        lines = (out / "log.txt").read_text(errors="replace").strip().splitlines()
        why = next((x for x in reversed(lines) if "error" in x.lower()), "no result")[-200:]
    found = json.loads(rounds.read_text()) if rounds.exists() and not why else []
    return Run(seconds, found, sampler, why)


def watched(process: "subprocess.Popen[bytes]", out: Path, limit: float) -> str:
    """Wait for a process; return why it was stopped, if it was."""
    progress = out / "progress"  # touched at the end of every round
    start = time.time()
    while True:
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            last = progress.stat().st_mtime if progress.exists() else start
            if time.time() - last > limit:
                return f"over {limit:.0f} s without the end of a round"
            if available_mb() < ROOM_MB:
                return f"less than {ROOM_MB / 1000:.0f} GB of the machine's memory left"
        else:
            return ""


def available_mb() -> float:
    """Return how much memory the machine has left."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    return kib * 1024 / tree.MB


def sweep(process: "subprocess.Popen[bytes]") -> None:
    """End what a peer left running; all of it descends from this process."""
    while left := tree.descendants(os.getpid(), tree.parents()):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def overhead_ms(peer: Peer, row: dict[str, Any]) -> float:
    """Return what a round took beyond training, where `at_once` clients train side by side."""
    return 1000 * (row["wall"] - sum(row["train"]) / peer.at_once)


def equal_work(names: Sequence[str], chosen: Any, scratch: Path) -> dict[str, Any]:
    """Let peers do the same work in turn; return figures, evidence, and what broke."""
    work, model = dumped(chosen.model, scratch)
    figures: dict[str, list[float]] = {}
    evidence: dict[str, Any] = {}
    times: dict[str, list[float]] = {}
    busy: list[float] = []  # processes that wanted a core in the last minute, ours among them
    for turn in range(chosen.turns):
        for name in names if turn % 2 == 0 else reversed(names):
            peer = PEERS[name]
            source = model if peer.environment == "triskel" else work
            out = scratch / "out" / name
            done = run(peer, source, out, cache=chosen.cache, sample=chosen.memory, limit=600)
            busy.append(os.getloadavg()[0])
            print(f"{name}: {done.seconds:.2f} s {done.broke}", file=sys.stderr)
            if done.broke:
                evidence[name] = {"broke": done.broke}
                continue
            last = done.rounds[-1]
            evidence[name] = {
                "train_s": sum(last["train"]),
                "losses": [sorted(round(x, 4) for x in row["loss"]) for row in done.rounds],
            }
            if done.memory is not None:
                figures.setdefault(f"{name}_peak_mb", []).append(done.memory.peak_mb)
                evidence[name]["processes"] = done.memory.most
                continue
            times.setdefault(name, []).append(done.seconds)
            figures.setdefault(f"{name}_s", []).append(done.seconds)
            figures.setdefault(f"{name}_second_round_s", []).append(last["wall"])
            figures.setdefault(f"{name}_overhead_ms", []).append(overhead_ms(peer, last))
    scored(names, evidence, work, scratch, chosen.cache)
    for name in OTHERS:
        if "triskel" in times and len(times.get(name, [])) == len(times["triskel"]):
            figures[f"wall_{name}_over_triskel"] = measure.ratios(times[name], times["triskel"])
        mine, theirs = figures.get("triskel_peak_mb"), figures.get(f"{name}_peak_mb")
        if mine and theirs and len(mine) == len(theirs):
            figures[f"memory_triskel_over_{name}"] = measure.ratios(mine, theirs)
    return {"figures": figures, "peers": evidence, "load": measure.spread(busy)}


def scored(
    names: Sequence[str], evidence: dict[str, Any], work: Path, scratch: Path, cache: Path
) -> None:
    """Note the accuracy of each peer's last adapter."""
    ended = {str(scratch / "out" / n): n for n in names if "broke" not in evidence.get(n, {})}
    python = environments.python_of("transformers", cache)
    call = [python, HERE / "evaluate.py", work, *ended]
    done = subprocess.run(
        [str(x) for x in call],
        env={**os.environ, **SETTINGS},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    for folder, facts in json.loads(done.stdout).items():
        evidence[ended[folder]] |= facts


def without_work(names: Sequence[str], chosen: Any, scratch: Path) -> dict[str, Any]:
    """Ask ever more clients for nothing; return figures and what broke."""
    work, model = dumped(chosen.many_model, scratch)
    figures: dict[str, list[float]] = {}
    broke: dict[str, str] = {}
    busy: list[float] = []
    for count in [c for c in COUNTS if c <= chosen.most]:
        for name in [n for n in names if PEERS[n].many and n not in broke]:
            peer = PEERS[name]
            source = model if peer.environment == "triskel" else work
            rounds = 6 if count <= 1_000 else 2
            done = run(
                peer,
                source,
                scratch / "out" / f"{name}-{count}",
                cache=chosen.cache,
                sample=False,
                limit=chosen.limit,
                more=["--many", count, "--rounds", rounds],
            )
            busy.append(os.getloadavg()[0])
            print(f"{name}, {count}: {done.seconds:.1f} s {done.broke}", file=sys.stderr)
            if done.broke:
                broke[name] = f"at {count} clients: {done.broke}"
                continue
            walls = [1000 * row["wall"] for row in done.rounds[1:]]  # the first one warms up
            figures[f"{name}_{count}_round_ms"] = walls
            figures[f"{name}_{count}_ms_a_client"] = [ms / count for ms in walls]
    for name in OTHERS:
        for count in COUNTS:
            mine, theirs = (f"{n}_{count}_round_ms" for n in ("triskel", name))
            if mine in figures and theirs in figures:
                ratios = measure.ratios(figures[theirs], figures[mine])
                figures[f"{name}_over_triskel_{count}"] = ratios
    return {"figures": figures, "broke": broke, "load": measure.spread(busy)}


def dumped(model: str, scratch: Path) -> tuple[Path, str]:
    """Return the folder of the work on a model, written at first use, and the model's folder."""
    found = str(Path(model).resolve()) if Path(model).is_dir() else model
    folder = scratch / f"work-{Path(model).name}"
    if not folder.exists():
        env = {**os.environ, **SETTINGS}
        subprocess.run([sys.executable, HERE / "dump.py", found, folder], check=True, env=env)
    return folder, found


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--peers", default=",".join(PEERS), help="names, by commas")
    options.add_argument("--model", default="smollm2-135m", help="an asset or a folder")
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--memory", action="store_true", help="sample memory, time nothing")
    options.add_argument("--many", action="store_true", help="clients without work instead")
    options.add_argument("--many-model", default="smollm2-135m", help="whose adapter they hold")
    options.add_argument("--most", type=int, default=COUNTS[-1], help="largest number of them")
    options.add_argument("--limit", type=float, default=120, help="seconds a round may take")
    options.add_argument("--cache", type=Path, default=cache_folder() / "peers")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.turns, chosen.most = 1, 100
    names = chosen.peers.split(",")
    if strange := set(names) - PEERS.keys():
        options.error(f"no such peer: {', '.join(sorted(strange))}; there are {', '.join(PEERS)}")
    places = {n: environments.python_of(PEERS[n].environment, chosen.cache) for n in names}
    versions = {name: environments.versions(python) for name, python in places.items()}
    tree.adopt_orphans()
    with TemporaryDirectory(prefix="triskel-peers-") as scratch:
        part = without_work if chosen.many else equal_work
        found = part(names, chosen, Path(scratch))
    figures = found.pop("figures")
    title = "peers-many" if chosen.many else "peers-memory" if chosen.memory else "peers"
    what = Path(chosen.many_model if chosen.many else chosen.model).name
    measure.report(
        title,
        figures,
        seed=chosen.seed,
        out=chosen.out,
        model=what,
        turns=chosen.turns,
        versions=versions,
        **found,
    )


if __name__ == "__main__":
    main()
