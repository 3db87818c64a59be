"""What becomes of files that others wrote and damaged: is each refused in a sentence, or read?

Inputs of every kind of file that another party writes are made of valid ones: cut, flipped,
spliced, and with values put in that have made readers fail (deep lists, numbers without end, links,
control characters). Each is handed to whoever reads it in earnest. Anything but a value or an error
of this package is a finding, and so is a file outside of the folder, or memory.
"""

import json
import random
import shutil
import sys
import tempfile
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import measure
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import save

from triskel.config.read import load as load_job
from triskel.config.read import parse, to_toml
from triskel.core.result_file import result_in
from triskel.errors import TriskelError
from triskel.experiment.compare import read_run
from triskel.experiment.records import read as read_record
from triskel.export.adapters import adapter_copied
from triskel.federation.distributed import request_of, signed_in
from triskel.federation.pack import unpack
from triskel.policy.hash_chain import Chain
from triskel.policy.hash_chain import read as read_log
from triskel.policy.model_hash import weights
from triskel.policy.read import load as load_policy
from triskel.policy.template import TEMPLATE
from triskel.report.catalogue import entry_of
from triskel.report.reading import read as read_result
from triskel.report.tables import markdown

Dice = random.Random
PLANTED = (
    *(b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b"1e999", b"-1e999", b"NaN", b"null", b"true"),
    *(b"-1", b"[]", b"{}", b'""', b"0.5", b"18446744073709551616", b"99999999999999999999"),
    *(b"\\u0000", b"\r", b"\x1b[2J", b"\xff\xfe", b"../../x", b"/etc/passwd", b'"modes"'),
    *(b"= [", b"\n[[", b"inf", b"'''", b"\n%sa = 1\n" % (b"a." * 9000), b"[%sa]" % (b"a." * 9000)),
)
"""What has made readers fail."""


def cut(data: bytes, dice: Dice) -> bytes:
    """Lose the end."""
    return data[: dice.randrange(len(data) + 1)]


def flipped(data: bytes, dice: Dice) -> bytes:
    """Change single bits."""
    found = bytearray(data)
    for _ in range(dice.randrange(1, 8)):
        if found:
            found[dice.randrange(len(found))] ^= 1 << dice.randrange(8)
    return bytes(found)


def spliced(data: bytes, dice: Dice) -> bytes:
    """Put a piece somewhere else."""
    a, b, c = sorted(dice.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def planted(data: bytes, dice: Dice) -> bytes:
    """Put in what has made readers fail."""
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice(PLANTED) + data[at + dice.randrange(9) :]


def replaced(data: bytes, dice: Dice) -> bytes:
    """Replace a value by another one."""
    marks = [i for i, byte in enumerate(data[:4000]) if byte in b":=,"]
    if not marks:
        return planted(data, dice)
    at = dice.choice(marks) + 1
    end = next((i for i in range(at, len(data)) if data[i] in b",}\n]"), len(data))
    return data[:at] + b" " + dice.choice(PLANTED) + data[end:]


FOLLOWED = ("job", "policy", "events")
"""One's own job or policy may be a link; what a run's log says is left out where it is one."""
WAYS = (cut, flipped, spliced, planted, replaced)


@dataclass
class Kind:
    """A kind of file.

    Attributes:
        name: What it is called.
        files: Valid files by name, in a folder.
        target: Which of them is damaged.
        read: Reads the folder as in earnest.
    """

    name: str
    files: dict[str, bytes]
    target: str
    read: Callable[[Path], Any]


def tensors() -> bytes:
    """Return a small file of weights."""
    return save({"base_model.model.x.lora_A.weight": torch.zeros(2, 3)}, {"format": "pt"})


def zipped(**files: bytes) -> bytes:
    """Return an archive."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name.replace("__", "."), data)
    return out.getvalue()


def signing_request() -> bytes:
    """Return what a party asks an authority to sign."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bank")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def kinds() -> Iterator[Kind]:
    """Yield every kind of file that another party writes."""
    job = to_toml(parse("name = 'fuzz'\nrounds = 2")).encode()
    asked = json.dumps({"modes": ["params"], "baselines": ["base"], "strict": False}).encode()
    golden = Path(__file__).parent.parent / "tests" / "golden" / "result-1-classify.json"
    result = golden.read_bytes()
    said = json.dumps({"name": "bank", "kind": "site", "org": "bank", "schema": 1}).encode()
    request = zipped(request__json=said, bank__csr=signing_request())
    run = {"job.toml": job, "request.json": asked, "result.json": result}
    events = b'{"time": 1.5, "event": "run_start"}\n{"time": 2, "event": "run_end"}\n'
    model = {"config.json": b'{"num_hidden_layers": 3}', "tokenizer.json": b"{}"}
    index = json.dumps({"metadata": {}, "weight_map": {"x": "a.safetensors"}}).encode()
    adapter = {"adapter_config.json": b'{"r": 2}', "adapter_model.safetensors": tensors()}
    yield Kind("job", {"j.toml": job}, "j.toml", lambda f: load_job(f / "j.toml"))
    yield Kind("policy", {"p.toml": TEMPLATE.encode()}, "p.toml",
               lambda f: load_policy(f / "p.toml"))  # fmt: skip
    yield Kind("kit request", {"r.zip": request}, "r.zip", lambda f: request_of(f / "r.zip"))
    yield Kind("approval", {"s.zip": zipped(bank__crt=b"-----BEGIN CERTIFICATE-----")}, "s.zip",
               lambda f: signed_in(f / "s.zip"))  # fmt: skip
    yield Kind("packed kit", {"k.kit": b"\x1f\x8b" + bytes(60)}, "k.kit",
               lambda f: unpack(f / "k.kit", f / "out"))  # fmt: skip
    yield Kind("result", {"result.json": result}, "result.json", _shown)
    yield Kind("events", {**run, "events.jsonl": events}, "events.jsonl", entry_of)
    yield Kind("run folder: job", run, "job.toml", lambda f: (entry_of(f), read_run(f)))
    yield Kind("run folder: request", run, "request.json", lambda f: (entry_of(f), read_run(f)))
    yield Kind("adapter: configuration", adapter, "adapter_config.json", _adapted)
    yield Kind("adapter: weights", adapter, "adapter_model.safetensors", _adapted)
    yield Kind("model folder", {**model, "model.safetensors": tensors()}, "config.json", weights)
    yield Kind("index", {**model, "model.safetensors.index.json": index,
                         "a.safetensors": tensors()},
               "model.safetensors.index.json", weights)  # fmt: skip
    yield Kind("records", {"outcomes/params.safetensors": tensors()},
               "outcomes/params.safetensors", lambda f: read_record(f, "params"))  # fmt: skip
    yield Kind("audit log", {"a.jsonl": _log()}, "a.jsonl", lambda f: list(read_log(f / "a.jsonl")))


def _log() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        chain = Chain(Path(name) / "a.jsonl")
        for n in range(3):
            chain.append("told", {"facts": {"examples": n}})
        return (Path(name) / "a.jsonl").read_bytes()


def _shown(folder: Path) -> object:
    found = result_in(folder)
    return read_result(found), markdown(found)


def _adapted(folder: Path) -> object:
    making = folder / "making"
    making.mkdir(exist_ok=True)
    return adapter_copied(folder, making)


def tried(kind: Kind, count: int, seed: int, room: Path) -> tuple[Counter[str], list[str]]:
    """Hand damaged files of a kind to who reads them; return what came of it, and findings."""
    dice = random.Random(f"{seed}/{kind.name}")  # noqa: S311 - damage
    outcomes, findings = Counter[str](), list[str]()
    folder = room / "in"
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in kind.files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    target, whole = folder / kind.target, kind.files[kind.target]
    secret = room / "secret"
    secret.write_bytes(whole)
    for number in range(count):
        target.unlink(missing_ok=True)
        if number % 500 == 499:
            target.symlink_to(secret)
        else:
            data = whole
            for _ in range(dice.randrange(1, 4)):
                data = dice.choice(WAYS)(data, dice)
            target.write_bytes(data)
        try:
            kind.read(folder)
            outcomes["read"] += 1
            if target.is_symlink() and kind.name not in FOLLOWED:
                findings.append(f"{kind.name}: a link was followed")
        except TriskelError as error:
            outcomes["refused"] += 1
            if "\r" in str(error) or "\x1b" in str(error):
                findings.append(f"{kind.name} {number}: {str(error)[:200]!r} rewrites a terminal")
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            findings.append(f"{kind.name} {number}: {type(error).__name__}: {str(error)[:200]}")
        if {path.name for path in room.iterdir()} != {"in", "secret"}:
            findings.append(f"{kind.name} {number}: wrote outside of its folder")
            break
    return outcomes, findings


def fuzzed(count: int, seed: int) -> dict[str, Any]:
    """Try so many files of all kinds together."""
    found: dict[str, Any] = {"findings": [], "kinds": {}}
    every = list(kinds())
    with tempfile.TemporaryDirectory() as name:
        tracemalloc.start()
        for kind in every:
            outcomes, findings = tried(kind, count // len(every) + 1, seed, Path(name))
            found["kinds"][kind.name] = dict(outcomes)
            found["findings"] += findings
        found["peak_mb"] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    return found


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    chosen = options.parse_args()
    found = fuzzed(5_000 if chosen.quick else 100_000, chosen.seed)
    for name, outcomes in found["kinds"].items():
        print(f"{name:24} {outcomes}")
    print(f"{found['peak_mb']:.0f} MB at most")
    print("\n".join(found["findings"][:50]))
    if chosen.out is not None:
        measure.keep("fuzz", found, seed=chosen.seed, out=chosen.out)
    sys.exit(bool(found["findings"]))


if __name__ == "__main__":
    main()
