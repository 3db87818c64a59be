"""What clients keep between rounds: one file a client and round, and a bounded few in memory.

A file is never changed: the state that a client leaves in round t is a new file, and the checkpoint
of a round says for every client which file counts, and its SHA-256. So a checkpoint of 10,000
clients is as quick to write as what they left this round, and a kill at any moment leaves the files
that the last checkpoint names. Files that no checkpoint on disk names are deleted. A state that is
empty has no file.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from triskel.core.crash import during
from triskel.core.files import drop, flush
from triskel.core.untrusted import check_header, data_of, json_of
from triskel.errors import CheckpointError
from triskel.experiment.checkpoint import Filed
from triskel.types import ClientId, ClientState

STATE_MOST = 4 << 30
"""Bytes that a client may keep."""
CACHE_BYTES = 16 * 2**20
"""Up to how many bytes of states stay in memory: those used last. One that is larger than this by
itself is read from its file each time."""
OVERHEAD = 1024
"""Bytes that a tensor takes beside its numbers, about."""
AT_ONCE = 8
"""Files that are flushed or deleted at a time: a journal takes several together, and one after the
other costs twenty times as much on some disks."""


class Store(Mapping[ClientId, ClientState]):
    """The states of a stage's clients, read from disk when they are asked for.

    Args:
        folder: Where the files are.
        filed: The files that count, by client; those of a checkpoint.
        cache_bytes: What may stay in memory.
        counted: The round of each client that counted last, wherever its state is: the one that it
            starts its next round from.
    """

    def __init__(
        self,
        folder: Path,
        filed: Mapping[ClientId, Filed] | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
        counted: Mapping[ClientId, int] | None = None,
    ) -> None:
        self.counted = dict(counted or {})
        self._folder = folder
        self._filed = dict(filed or {})
        self._room, self._used = cache_bytes, 0
        self._cache: OrderedDict[ClientId, tuple[int, ClientState]] = OrderedDict()
        self._fresh: list[str] = []

    def __getitem__(self, client: ClientId) -> ClientState:
        """Return what a client keeps.

        Raises:
            KeyError: It keeps nothing.
            CheckpointError: Its file is missing or damaged.
        """
        filed = self._filed[client]
        if client in self._cache:
            self._cache.move_to_end(client)
            return self._cache[client][1]
        state = _loaded(_checked(self._folder, client, filed))
        self._hold(client, state)
        return state

    def __contains__(self, client: object) -> bool:
        """Return whether a client keeps anything, without reading it."""
        return client in self._filed

    def __iter__(self) -> Iterator[ClientId]:
        """Return who keeps anything, by name."""
        return iter(sorted(self._filed))

    def __len__(self) -> int:
        """Return how many clients keep anything."""
        return len(self._filed)

    @property
    def filed(self) -> Mapping[ClientId, Filed]:
        """The file that counts for each client, as a checkpoint names it."""
        return dict(self._filed)

    @during("while writing what a client keeps")
    def keep(self, client: ClientId, state: ClientState, round_: int) -> None:
        """Take what a client keeps from now on.

        Raises:
            CheckpointError: The disk is full or not writable.
        """
        self._used -= self._cache.pop(client, (0, state))[0]
        if not state.groups and not state.facts:
            self._filed.pop(client, None)
            return
        owned = _owned(state)
        data = _saved(client, owned, round_)
        filed = Filed(round=round_, sha256=hashlib.sha256(data).hexdigest())
        place = self._folder / _name(client, filed)
        part = place.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(place)
        except OSError as error:
            drop(part)
            raise CheckpointError(
                f"state of client {client!r} cannot be written to {place}: {error}; free some "
                "space and resume the run"
            ) from error
        self._filed[client] = filed
        self._fresh.append(place.name)
        self._hold(client, owned)

    def flush(self) -> None:
        """Bring the files that are new since the last call to the disk, and their names.

        Raises:
            CheckpointError: The disk does not take them.
        """
        if not self._fresh:
            return
        try:
            _together(lambda name: flush(self._folder / name), self._fresh)
            flush(self._folder)
        except OSError as error:
            raise CheckpointError(
                f"states of clients cannot be written to {self._folder}: {error}; free some space "
                "and resume the run"
            ) from error
        self._fresh = []

    def check(self, filed: Mapping[ClientId, Filed]) -> None:
        """Read every file that a checkpoint names, one after the other, and keep none.

        Raises:
            CheckpointError: One is missing or damaged; it is named.
        """
        for client, one in filed.items():
            _checked(self._folder, client, one)

    def sweep(self, named: Iterable[Mapping[ClientId, Filed]]) -> None:
        """Delete every file that none of the checkpoints names; one that will not go stays."""
        if not self._folder.is_dir():
            return
        wanted = {_name(client, one) for filed in named for client, one in filed.items()}
        here = (entry.name for entry in os.scandir(self._folder))
        _together(
            lambda name: drop(self._folder / name), [name for name in here if name not in wanted]
        )

    def _hold(self, client: ClientId, state: ClientState) -> None:
        """Keep a state in memory, and let go of those used longest ago."""
        size = sum(t.nbytes + OVERHEAD for g in state.groups.values() for t in g.values())
        self._cache[client] = (size, state)
        self._used += size
        while self._used > self._room:
            self._used -= self._cache.popitem(last=False)[1][0]


def _name(client: ClientId, filed: Filed) -> str:
    """Return the name of a file; a client's own name may be no name for a file, or a long one."""
    return f"{hashlib.sha256(client.encode()).hexdigest()[:24]}-{filed.round:06d}.safetensors"


def _owned(state: ClientState) -> ClientState:
    """Return the state in memory of its own: no view keeps a batch alive, no owner changes it."""
    groups = {
        name: {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
        for name, tensors in state.groups.items()
    }
    return ClientState(groups=groups, facts=dict(state.facts))


def _saved(client: ClientId, state: ClientState, round_: int) -> bytes:
    """Return a state as a file: groups by number, and names in their order beside the facts."""
    tensors: dict[str, Tensor] = {}
    for index, named in enumerate(state.groups.values()):
        tensors |= {f"{index}/{name}": t for name, t in named.items()}
    about = {
        "client": client,
        "round": round_,
        "groups": {name: list(named) for name, named in state.groups.items()},
        "facts": dict(state.facts),
    }
    return safetensors.torch.save(tensors, metadata={"state": json.dumps(about)})


def _checked(folder: Path, client: ClientId, filed: Filed) -> bytes:
    place = folder / _name(client, filed)
    way = (
        "resume the run to go on from the round before, or delete "
        f"{folder.parent} to play the stage anew"
    )
    try:
        data = data_of(place, most=STATE_MOST)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"state of client {client!r} cannot be read: {error}; {way}"
        ) from error
    if hashlib.sha256(data).hexdigest() != filed.sha256:
        raise CheckpointError(
            f"state of client {client!r} in {place} is damaged: its SHA-256 does not match; {way}"
        )
    return data


def _loaded(data: bytes) -> ClientState:
    """Return the state in a file whose SHA-256 is right."""
    try:
        size = int.from_bytes(data[:8], "little")
        check_header(data[:8], data[8 : 8 + size])
        about: Any = json_of(json_of(data[8 : 8 + size].decode())["__metadata__"]["state"])
        tensors = safetensors.torch.load(data)
        groups = {
            group: {name: tensors[f"{index}/{name}"] for name in names}
            for index, (group, names) in enumerate(about["groups"].items())
        }
        return ClientState(groups=groups, facts=about["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"state of a client belongs to another version: {error}") from error


def _together(work: Callable[[str], None], names: list[str]) -> None:
    """Do something to many files, several at a time; the first that fails is raised."""
    with ThreadPoolExecutor(AT_ONCE) as hands:
        for start in range(0, len(names), 64 * AT_ONCE):
            list(hands.map(work, names[start : start + 64 * AT_ONCE]))
