"""Records of a run: what each row of a comparison got right, text by text.

Scores of two models on the same texts are paired, and only what is kept by text can say whether a
difference is more than chance. `outcomes/<row>.safetensors` holds, for every test text, its
identity, whose it is, and for both columns of a result how many predictions were right and what
they lost: `everybody` (the common model, or the mean over clients of their own) and `own` (each
client's own model where it has one).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from triskel.core.files import write_bytes
from triskel.core.untrusted import json_of, safetensors_at
from triskel.errors import CheckpointError
from triskel.numerics.metrics import PerText
from triskel.types import ClientId, Examples

FOLDER = "outcomes"
COLUMNS = ("everybody", "own")
DROPS = "~drop"
"""Behind a mode's name: the row of the same mode with drop-outs."""
ByClient = Mapping[ClientId, PerText]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of one run.

    Attributes:
        clients: Whose texts, in order.
        owner: Place of each text's client among them.
        texts: Identity of each text; equal texts have equal ones, in every run.
        columns: What was reached, by column; a text that was not measured has nothing scored.
    """

    clients: tuple[ClientId, ...]
    owner: Int64[Tensor, " texts"]
    texts: Int64[Tensor, " texts"]
    columns: Mapping[str, PerText]

    def of(self, client: ClientId) -> Bool[Tensor, " texts"]:
        """Return which texts are a client's."""
        return self.owner == self.clients.index(client)

    def by_client(self, column: str) -> dict[ClientId, PerText]:
        """Return a column by whose texts they are, of clients whose texts were measured."""
        parts = {c: self.columns[column].at(self.of(c)) for c in self.clients}
        return {c: part for c, part in parts.items() if bool(part.scored.any())}


def identities(parts: Iterable[Examples]) -> Int64[Tensor, " texts"]:
    """Return a number for each text of all parts, from its tokens and its label alone.

    A text that is there several times has as many numbers, the same in every run.
    """
    found: list[int] = []
    seen = Counter[bytes]()
    for part in parts:
        for place, ids in enumerate(part.ids):
            label = part.labels[place] if part.labels else -1
            told = ids.numpy().tobytes() + label.to_bytes(8, "little", signed=True)
            again = seen[told].to_bytes(8, "little")
            seen[told] += 1
            digest = hashlib.blake2b(told + again, digest_size=8).digest()
            found.append(int.from_bytes(digest, "little", signed=True))
    return torch.tensor(found, dtype=torch.int64)


def gathered(tests: Mapping[ClientId, Examples], columns: Mapping[str, ByClient]) -> Record:
    """Return what was reached on everybody's test texts, client after client.

    A client that is missing in a column counts as not measured there, and so does one whose model
    speaks of other predictions than its texts have, as with another tokenizer.
    """
    clients = tuple(tests)
    scored = {c: _scored(examples) for c, examples in tests.items()}

    def part(by_client: ByClient, client: ClientId) -> PerText:
        found, wanted = by_client.get(client), scored[client]
        if found is not None and found.scored.equal(wanted):
            return found
        none = torch.zeros(len(wanted), dtype=torch.float64)
        return PerText(right=none, loss=none, scored=torch.zeros_like(wanted))

    owner = [place for place, c in enumerate(clients) for _ in range(len(tests[c]))]
    return Record(
        clients=clients,
        owner=torch.tensor(owner, dtype=torch.int64),
        texts=identities(tests.values()),
        columns={n: _joined([part(one, c) for c in clients]) for n, one in columns.items()},
    )


def _joined(parts: Sequence[PerText]) -> PerText:
    return PerText(
        right=torch.cat([p.right for p in parts]),
        loss=torch.cat([p.loss for p in parts]),
        scored=torch.cat([p.scored for p in parts]),
    )


def mean(models: Sequence[PerText]) -> PerText:
    """Return what several models reach on the same texts on average."""
    return PerText(
        right=torch.stack([m.right for m in models]).mean(0),
        loss=torch.stack([m.loss for m in models]).mean(0),
        scored=models[0].scored,
    )


def write(folder: Path, row: str, record: Record) -> None:
    """Keep a row's record in a run folder."""
    tensors = {"text": record.texts, "client": record.owner}
    for name, one in record.columns.items():
        for what, values in (("right", one.right), ("loss", one.loss), ("scored", one.scored)):
            tensors[f"{name}.{what}"] = values.clone()
    about = {"clients": json.dumps(record.clients)}
    write_bytes(_place(folder, row), save(tensors, metadata=about))


def read(folder: Path, row: str) -> Record | None:
    """Return a row's record, or None where none were kept.

    Raises:
        CheckpointError: The file is damaged.
    """
    place = _place(folder, row)
    if not place.exists():
        return None
    try:
        with safe_open(safetensors_at(place), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            clients = tuple(str(c) for c in json_of(file.metadata()["clients"]))
        columns = {
            name: PerText(
                right=tensors[f"{name}.right"],
                loss=tensors[f"{name}.loss"],
                scored=tensors[f"{name}.scored"],
            )
            for name in COLUMNS
        }
        return Record(
            clients=clients, owner=tensors["client"], texts=tensors["text"], columns=columns
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{place} does not hold what was reached on each text: {error}; delete it, and "
            f"stages/{row}/done.json where that is there, and `triskel run --resume {folder}` "
            "writes it anew"
        ) from error


def _place(folder: Path, row: str) -> Path:
    return folder / FOLDER / f"{row}.safetensors"


def _scored(examples: Examples) -> Tensor:
    if examples.scored:
        return torch.tensor([int(marks.sum()) for marks in examples.scored])
    return torch.tensor([int(label >= 0) for label in examples.labels], dtype=torch.int64)
