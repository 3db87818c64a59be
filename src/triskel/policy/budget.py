"""What all jobs together had of a site's datasets, and whether there is room for more.

A floor on rows alone does not stop differencing: who may ask often learns from the differences. So
a site counts, for every file of a dataset, the jobs, rounds, scores and bytes that it gave, by day
and in all, and stops at its policy's budget. What is given is on disk before it leaves; two names
of one file share one account, and so do all submitters.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from filelock import FileLock

from triskel.core.files import write_text
from triskel.core.untrusted import json_in
from triskel.errors import CheckpointError, LimitError
from triskel.policy.draws import key_of
from triskel.policy.hash_chain import AuditError, now
from triskel.policy.rules import Budget

FILE = "spent.json"
MB = 1_000_000
CHUNK = MB
"""Bytes that are booked at a time, ahead of the messages that use them."""
Kind = Literal["jobs", "rounds", "scores", "mb"]
KINDS: tuple[Kind, ...] = ("jobs", "rounds", "scores", "mb")
Amounts = Mapping[Kind, float]


@dataclass
class Account:
    """What was given of one file.

    Attributes:
        ever: In all.
        day: The last day on which something was, in UTC.
        today: On that day.
        runs: The runs that were counted as jobs.
    """

    ever: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    day: str = ""
    today: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    runs: list[str] = field(default_factory=list[str])

    def on(self, day: str) -> "Account":
        """Return the account as it stands on a day."""
        if day == self.day:
            return self
        return Account(dict(self.ever), day, dict.fromkeys(KINDS, 0.0), list(self.runs))


class Spent:
    """The accounts of the files that one job reads.

    Args:
        folder: Where the site keeps its accounts.
        files: Real places of the files.
        budget: What the policy gives.
        run: Which run; it is one job, however often it is submitted.
        clock: What time it is.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        budget: Budget,
        run: str,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._place, self._files, self._budget = folder / FILE, list(files), budget
        self._run, self._clock, self._ahead = run, clock, 0

    def short(self, wanted: Amounts) -> list[str]:
        """Return the keys of the budget that have no room for what a job asks.

        A run that was counted before goes on as far as it comes.

        Raises:
            AuditError: The accounts cannot be read.
        """
        with self._open() as known:
            asked = self._asked(known, wanted)
            return self._short(known, asked) if asked.get("jobs") else []

    def job(self) -> None:
        """Count the run as a job, unless it was counted before.

        Raises:
            LimitError: There is no room for it.
            AuditError: It cannot be written down; do not give it.
        """
        self._take({"jobs": 1})

    def take(self, kind: Kind) -> None:
        """Count a round or a score that is about to be given.

        Raises:
            LimitError: There is no room for it.
            AuditError: It cannot be written down; do not give it.
        """
        self._take({kind: 1})

    def leaving(self, size: int) -> None:
        """Count bytes that are about to leave.

        Raises:
            LimitError: There is no room for them.
            AuditError: They cannot be written down; do not send them.
        """
        if size > self._ahead:
            more = -(-(size - self._ahead) // CHUNK) * CHUNK
            self._take({"mb": more / MB})
            self._ahead += more
        self._ahead -= size

    # --- the file -----------------------------------------------------------------------------

    def _take(self, wanted: Amounts) -> None:
        with self._open() as known:
            asked = self._asked(known, wanted)
            if short := self._short(known, asked):
                raise LimitError(
                    f"budget.{short[0]}: what all jobs together may have of this site's dataset is "
                    "used up; this site does not allow more"
                )
            for account in known.values():
                for kind, amount in asked.items():
                    account.ever[kind] += amount
                    account.today[kind] += amount
                if asked.get("jobs"):
                    account.runs.append(self._run)
            self._write(known)

    def _asked(self, known: Mapping[str, Account], wanted: Amounts) -> dict[Kind, float]:
        """Return amounts without the job, where the run is one already."""
        old = bool(known) and all(self._run in account.runs for account in known.values())
        return {kind: 0.0 if kind == "jobs" and old else n for kind, n in wanted.items()}

    def _short(self, known: Mapping[str, Account], asked: Amounts) -> list[str]:
        found: list[str] = []
        for kind, amount in asked.items():
            for key, told in ((f"{kind}_day", "today"), (kind, "ever")):
                most: float = getattr(self._budget, key)
                had = [cast("Amounts", getattr(one, told))[kind] for one in known.values()]
                if amount and any(one + amount > most for one in had):
                    found.append(key)
        return found

    @contextmanager
    def _open(self) -> Generator[dict[str, Account]]:
        """Hand out the accounts, while nobody else has them."""
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._place.with_suffix(".lock")):
                yield self._read()
        except (OSError, CheckpointError) as error:
            raise AuditError(
                f"what this site gives cannot be written down, so nothing is given: {error}"
            ) from error

    def _read(self) -> dict[str, Account]:
        """Return the accounts of the job's files as they stand today."""
        day = self._clock().astimezone(UTC).date().isoformat()
        whole = self._whole()
        return {
            (place := key_of(file, whole)): whole.get(place, Account()).on(day)
            for file in self._files
        }

    def _whole(self) -> dict[str, Account]:
        return accounts(self._place.parent)

    def _write(self, changed: Mapping[str, Account]) -> None:
        whole = {**self._whole(), **changed}
        write_text(self._place, json.dumps({n: one.__dict__ for n, one in whole.items()}, indent=1))


def accounts(folder: Path) -> dict[str, Account]:
    """Return every account that a site keeps.

    Raises:
        AuditError: They cannot be read; then nothing may be given.
    """
    place = folder / FILE
    if not place.exists():
        return {}
    try:
        raw: Any = json_in(place)
        return {name: _account(one) for name, one in raw.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuditError(
            f"{place} does not say what was given before ({type(error).__name__}), so nothing is; "
            "put back the file that the site wrote"
        ) from error


def _account(raw: Mapping[str, Any]) -> Account:
    amounts: list[dict[Kind, float]] = []
    for part in ("ever", "today"):
        amounts.append({kind: float(raw[part][kind]) for kind in KINDS})
        if any(not 0 <= n < float("inf") for n in amounts[-1].values()):
            raise ValueError(part)
    return Account(amounts[0], str(raw["day"]), amounts[1], [str(run) for run in raw["runs"]])


def lines(folder: Path, budget: Budget) -> Iterator[str]:
    """Yield a line for every account: what was given, and of how much."""
    for name, account in sorted(accounts(folder).items()):
        told = [
            f"{kind} {account.ever[kind]:g} of {getattr(budget, kind):g} "
            f"({account.today[kind]:g} of {getattr(budget, f'{kind}_day'):g} on {account.day})"
            for kind in KINDS
        ]
        yield f"{name}: {', '.join(told)}"
