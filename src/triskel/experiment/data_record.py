"""What data a run is of: written when it begins, and held against what is there afterwards.

A run folder keeps, in `data.json`, what the rows of every party are known by (`data.digest`), and
the classes, the layout of texts and the tokenizers. Who goes on with a run, or evaluates it on its
own texts, is told in one sentence which file is another than it was, and how. Paths and times of
files play no part.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from triskel.config.job import Job
from triskel.config.sections import Judge
from triskel.core.files import write_text
from triskel.core.registry import TASKS
from triskel.core.untrusted import json_in, table_of
from triskel.data.digest import Digest, digest_in, digest_of, text_digest, together
from triskel.data.federate import SHOWN, Federation
from triskel.data.rows import Rows, Table
from triskel.errors import CheckpointError, DataError

NAME = "data.json"
SOURCES = "sources.json"
"""In a folder of several runs: what the rows that they all read are known by."""
FORMAT = 1
PUBLIC = "the public set"
Shares = Mapping[str, Digest]
SHARE = {"train": "training rows", "validation": "validation rows", "test": "test rows"}


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What the data of a run are known by.

    Attributes:
        clients: Each client's shares: `train`, `validation`, and `test` where test rows were read.
        public: The public set.
        classes: Class names by index.
        layout: How texts become tokens.
        tokenizers: By whose they are: the server's under an empty name, and clients' that have
            models of their own.
    """

    clients: Mapping[str, Shares]
    public: Digest
    classes: tuple[str, ...]
    layout: str
    tokenizers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def row(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "format": FORMAT,
            "classes": list(self.classes),
            "layout": self.layout,
            "tokenizers": dict(self.tokenizers),
            "public": self.public.row,
            "clients": {
                client: {share: one.row for share, one in shares.items()}
                for client, shares in self.clients.items()
            },
        }


def record_of(job: Job, federation: Federation) -> DataRecord:
    """Return what is known of a job's data before any model is loaded."""
    spec = TASKS.spec(job.data.task)
    return DataRecord(
        clients={client: held.digests for client, held in federation.clients.items()},
        public=digest_of(federation.public),
        classes=federation.classes,
        layout=text_digest(f"{spec.name} {spec.layout(job.data)}"),
    )


def hold(folder: Path, job: Job, federation: Federation, *, write: bool) -> bool:
    """Hold data against those that a run began with, or write down what it begins with.

    Args:
        folder: Of the run.
        job: The run's job.
        federation: What was read for it.
        write: Whether what the folder does not say yet is written there.

    Returns:
        Whether the folder said what the run began with.

    Raises:
        DataError: They are not the data that the run began with; says which, and how they differ.
        CheckpointError: What was written down is damaged, or the disk is full.
    """
    now, before = record_of(job, federation), read(folder)
    if before is None:
        if write:
            _write(folder, now)
        return False
    if (why := next(changes(before, now, job), None)) is not None:
        raise DataError(f"{why}; put back what the run in {folder} began with, or start a new run")
    shares = {c: {**before.clients.get(c, {}), **mine} for c, mine in now.clients.items()}
    if write and shares != before.clients:  # test rows are read when settings are chosen
        _write(folder, replace(before, clients=shares))
    return True


def unsaid(folder: Path) -> str:
    """Return the warning that a run does not say what data it began with."""
    return f"{folder} does not say what data it began with; what is there now is taken for it"


def hold_tokenizers(folder: Path, tokenizers: Mapping[str, Any], *, write: bool) -> None:
    """Hold tokenizers against those that a run began with, or write down what it begins with.

    Args:
        folder: Of the run, whose data were held before.
        tokenizers: By whose they are; the server's under an empty name.
        write: Whether what the folder does not say yet is written there.

    Raises:
        DataError: One is another than it was.
        CheckpointError: What was written down is damaged, or the disk is full.
    """
    before = read(folder)
    if before is None:
        return
    now = {whose: tokenizer_digest(one) for whose, one in tokenizers.items()}
    for whose, digest in now.items():
        if before.tokenizers.get(whose, digest) != digest:
            owner = f"of client {whose!r}" if whose else "of the model"
            raise DataError(
                f"the tokenizer {owner} makes other tokens than when the run in {folder} began; "
                "put it back as it was, or start a new run"
            )
    if write and not now.keys() <= before.tokenizers.keys():
        _write(folder, replace(before, tokenizers={**before.tokenizers, **now}))


def hold_source(folder: Path, job: Job, table: Table, judge: Judge) -> None:
    """Hold rows against those that another run of one folder read, or write them down.

    Seeds deal the same rows otherwise, and settings train otherwise on them; neither reads others.

    Args:
        folder: Which holds the runs, a folder each.
        job: The job of one of them.
        table: What was read for it; the order of its rows plays no part.
        judge: Which rows are held as test rows. The test rows that a seed chose are dropped unread
            where validation rows are.

    Raises:
        CheckpointError: The rows are others than before, what was written down is damaged, or the
            disk is full.
    """
    seed = job.seed if judge == "validation" and not job.data.test else None
    asked = [job.data.model_dump(mode="json"), job.clients.by, judge, seed]
    key = text_digest(json.dumps(asked, sort_keys=True))
    source = together([digest_of(table.train), digest_of(table.test)])
    place, now = folder / SOURCES, json.loads(json.dumps(source))
    try:
        known = table_of(json_in(place)) if place.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{place} is damaged: {error}; it says what rows the runs in {folder} read"
        ) from error
    if (before := known.get(key, now)) != now:
        rows = f"{now[0]:,} rows and had {before[0]:,}"
        what = "other rows than" if before[0] == now[0] else rows
        raise CheckpointError(
            f"{job.data.train or 'the source'} has {what} when the runs in {folder} began; put "
            "back what they began with, or start anew"
        )
    if key not in known:
        write_text(place, json.dumps({**known, key: now}))


def tokenizer_digest(tokenizer: Any) -> str:  # noqa: ANN401 - transformers'
    """Return what a tokenizer is known by: what it makes of texts, and how it lays out a chat."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is not None:
        tokens = json.loads(inner.to_str())
        for called in ("padding", "truncation"):  # as it was called last
            tokens.pop(called, None)
    else:
        tokens = tokenizer.get_vocab()
    told = {
        "tokens": tokens,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat": tokenizer.chat_template,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> DataRecord | None:
    """Return what a run began with; None where its folder does not say it.

    Raises:
        CheckpointError: What it says is damaged, or of another version.
    """
    place = folder / NAME
    if not place.exists():
        return None
    try:
        raw = table_of(json_in(place))
        if raw["format"] != FORMAT:
            raise CheckpointError(
                f"{place} has format {raw['format']}, this version reads {FORMAT}"
            )
        clients = cast("Mapping[str, Mapping[str, Any]]", table_of(raw["clients"]))
        return DataRecord(
            clients={
                client: {share: digest_in(one) for share, one in table_of(shares).items()}
                for client, shares in clients.items()
            },
            public=digest_in(raw["public"]),
            classes=tuple(map(str, raw["classes"])),
            layout=str(raw["layout"]),
            tokenizers={k: str(v) for k, v in table_of(raw["tokenizers"]).items()},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{place} is damaged: {error}; it says what the run began with"
        ) from error


def changes(before: DataRecord, now: DataRecord, job: Job) -> Iterator[str]:
    """Yield in what data differ from those that a run began with, the most telling first."""
    if before.classes != now.classes:
        yield f"the classes are {_listed(now.classes)} and were {_listed(before.classes)}"
    files = _by_file(before, now, job)
    for file, shares in files.items():
        if any(was.whole != is_.whole for _, was, is_ in shares):
            yield f"{file} {_how(shares)}"
    if before.clients.keys() != now.clients.keys():
        yield f"the clients are {_listed(now.clients)} and were {_listed(before.clients)}"
    if before.layout != now.layout:
        yield "texts are laid out otherwise (data.template) than when the run began"


def _by_file(
    before: DataRecord, now: DataRecord, job: Job
) -> dict[str, list[tuple[str, Digest, Digest]]]:
    """Return every share that both know, with what it was and is, by the file that it is from."""
    none = digest_of(Rows())
    found: dict[str, list[tuple[str, Digest, Digest]]] = {}
    for client in sorted(before.clients.keys() | now.clients.keys()):
        was, is_ = before.clients.get(client), now.clients.get(client)
        known = [s for s in SHARE if (was is None or s in was) and (is_ is None or s in is_)]
        for share in known:
            pair = (was or {}).get(share, none), (is_ or {}).get(share, none)
            found.setdefault(_file(job, share, client), []).append(
                (f"{client}'s {SHARE[share]}", *pair)
            )
    public = (PUBLIC, before.public, now.public)
    found.setdefault(_file(job, "public", ""), []).append(public)
    return found


def _file(job: Job, share: str, client: str) -> str:
    """Return what a share is read from."""
    data = job.data
    own = {"test": data.test, "public": data.public}.get(share, "") or data.train
    if data.source == "opinions":
        return "the opinions asset"
    if data.source == "hub" and not Path(own).exists():
        return f"dataset {data.hub} split {own or 'train'}"
    if data.source == "clients" and client and (share != "test" or not Path(own).is_file()):
        apart = share == "test" and (bool(data.test) or any(Path(own).glob(f"{client}.test.*")))
        return f"the {'test file' if apart else 'file'} of {client} in {own}"
    return f"data file {own}"


def _how(shares: list[tuple[str, Digest, Digest]]) -> str:
    """Return in what the shares of a file differ."""
    rows, texts, labelled = together(was for _, was, _ in shares)
    rows_now, texts_now, labelled_now = together(is_ for *_, is_ in shares)
    name, was, is_ = next(one for one in shares if one[1].whole != one[2].whole)
    if rows != rows_now:
        counted = next(((n, w, i) for n, w, i in shares if w.rows != i.rows), (name, was, is_))
        one = f"{counted[0]}: {counted[2].rows:,} and {counted[1].rows:,}"
        return f"gives {rows_now:,} rows and gave {rows:,} when the run began ({one})"
    if texts == texts_now and any(name == PUBLIC for name, *_ in shares):  # it has no labels
        return f"has its rows in another order, or other labels, than when the run began ({name})"
    if texts == texts_now and labelled != labelled_now:
        return f"has other labels than when the run began ({name} among others)"
    if labelled == labelled_now:
        return f"has its rows in another order than when the run began ({name} among others)"
    return f"has other texts than when the run began ({name} among others)"


def _listed(names: Collection[str]) -> str:
    shown = sorted(names) if not isinstance(names, tuple) else list(names)
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")


def _write(folder: Path, record: DataRecord) -> None:
    write_text(folder / NAME, json.dumps(record.row))
