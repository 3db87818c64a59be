"""What a run looks like while it goes: a live display on a terminal, one line per round elsewhere.

`Live` is a `Watch`: it only listens. An event or key that it does not know is passed over, because
a display must never be the reason that a run stops. A stage called `local:shop` is a part of the
stage `local`: what it does counts there, and its rounds are not announced one by one.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

from rich import filesize
from rich.console import Console, Group, RenderableType
from rich.live import Live as Display
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from triskel.core.console import Plain
from triskel.core.events import Event, kind_of
from triskel.core.registry import MODES

NAMES = {
    "base": "base",
    "local": "each client alone",
    "local_equal": "alone at equal FLOPs",
    "central": "centralised",
}
COLUMNS = {"everybody": "everybody's texts", "own": "own texts"}
SMOOTH = 0.1
"""Weight of the newest loss in the one that is shown."""
NAMED = 12
"""Up to how many parts of a stage get a line of their own."""


@dataclass
class _Stage:
    """One baseline or mode, as far as it has come."""

    name: str
    rounds: int = 1
    work: float | None = None
    unit: str = "tokens"
    began: float = 0.0
    seconds: float | None = None
    round: int = 0
    clients: int = 0
    parts: int = 0
    part: str = ""
    parts_ended: int = 0
    evaluating: bool = False
    ended: set[str] = field(default_factory=set[str])
    tokens: float = 0.0
    steps: int = 0
    busy_s: float = 0.0
    loss: float | None = None
    up: float = 0.0
    down: float = 0.0

    def share(self) -> float:
        """Return which share of the stage is done, held within what the rounds allow."""
        rounds = max(self.rounds, 1)
        within = len(self.ended) / self.clients if self.clients else 0.0
        low = (max(self.round - 1, 0) + within) / rounds
        high = max(self.round, 1) / rounds
        if self.parts:
            low = (self.parts_ended + (low if self.part else 0.0)) / self.parts
            high = (self.parts_ended + 1) / self.parts
        low, high = min(low, 1.0), min(max(low, high), 1.0)
        if not self.work:
            return low
        done = self.steps if self.unit == "steps" else self.tokens
        return min(max(low, done / self.work), high)


class Live:
    """Shows a run: call it with events, inside a `with`.

    Args:
        console: Where to write; standard error by default, so that output stays clean.
        clock: Seconds that only grow.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Plain(stderr=True, highlight=False)
        self._clock = clock
        self._began = clock()
        self._waiting: list[str] = []
        self._done: list[_Stage] = []
        self._stage: _Stage | None = None
        self._display: Display | None = None
        self._clients = 0
        self._work: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._began = self._clock()
        if self._console.is_terminal:
            self._display = Display(
                console=self._console,
                get_renderable=self._shown,
                refresh_per_second=4,
                transient=True,
            )
            self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.stop()

    def __call__(self, event: Event, /) -> None:
        """Take note of one event."""
        match kind_of(event):
            case "run_start":
                self._run_start(event)
            case "stage_start":
                self._stage_start(event)
            case "warning" | "note" as kind:
                mark = "[yellow]warning[/] " if kind == "warning" else ""
                self._say(f"{mark}{escape(_text(event, 'text'))}")
            case "seed_start":
                which = " of ".join(_text(event, key) for key in ("number", "of"))
                self._done, self._stage = [], None
                self._say(f"[bold]seed {escape(_text(event, 'seed'))}[/], {escape(which)}")
            case "run_end":
                took = _number(event, "seconds")
                self._say(f"done in {_duration(self._elapsed() if took is None else took)}")
            case _:
                if self._stage is not None:
                    self._progress(self._stage, event)

    # --- Events -------------------------------------------------------------------------------

    def _run_start(self, event: Event) -> None:
        self._began = self._clock()
        self._waiting = [str(name) for name in _items(event, "stages")]
        work = event.get("work")
        if isinstance(work, Mapping):
            known = cast("Mapping[str, Any]", work)
            pairs = ((str(name), _number(known, name)) for name in known)
            self._work = {name: value for name, value in pairs if value}
        self._clients = len(_items(event, "clients"))
        if self._display is None:
            rounds = int(_number(event, "rounds") or 1)
            stages = ", ".join(_title(name) for name in self._waiting)
            self._say(escape(f"clients: {self._clients}, rounds: {rounds}, stages: {stages}"))

    def _stage_start(self, event: Event) -> None:
        name = _text(event, "stage")
        if self._stage is not None and name.startswith(f"{self._stage.name}:"):
            self._stage.part = name.removeprefix(f"{self._stage.name}:")
            self._stage.parts = max(self._clients, self._stage.parts_ended + 1)
            self._stage.round, self._stage.ended = 0, set()
            return
        if name in self._waiting:  # a resumed run does not announce what it has done before
            self._waiting = self._waiting[self._waiting.index(name) + 1 :]
        self._stage = _Stage(
            name=name,
            rounds=int(_number(event, "rounds") or 1),
            work=_number(event, "work") or self._work.get(name),
            unit=_text(event, "unit") or "tokens",
            began=self._clock(),
        )

    def _progress(self, stage: _Stage, event: Event) -> None:
        match kind_of(event):
            case "round_start":
                stage.evaluating = False
                stage.round = int(_number(event, "round") or stage.round + 1)
                stage.clients = len(_items(event, "clients"))
                stage.ended = set()
            case "step":
                self._step(stage, event)
            case "message":
                count = _number(event, "bytes") or 0.0
                if event.get("direction") == "up":
                    stage.up += count
                else:
                    stage.down += count
                if event.get("kind") == "update":
                    stage.ended.add(_text(event, "client"))
            case "client_end":
                stage.ended.add(_text(event, "client"))
            case "evaluate":
                stage.evaluating = True
            case "round_end":
                self._round_end(stage, event)
            case "stage_end":
                self._stage_end(stage, event)
            case _:
                pass

    def _step(self, stage: _Stage, event: Event) -> None:
        stage.steps += 1
        stage.tokens += _number(event, "tokens") or 0.0
        stage.busy_s += _number(event, "seconds") or 0.0
        loss = _number(event, "loss")
        if loss is not None:
            stage.loss = loss if stage.loss is None else stage.loss + SMOOTH * (loss - stage.loss)

    def _round_end(self, stage: _Stage, event: Event) -> None:
        stage.round = int(_number(event, "round") or stage.round)
        stage.evaluating = False
        if stage.part:
            return
        up, down = _number(event, "up_bytes"), _number(event, "down_bytes")
        words = [f"round {stage.round}/{stage.rounds}", _quality(event)]
        if up or down:
            words.append(f"{_size(up)} up, {_size(down)} down")
        words.append(_duration(_number(event, "seconds")))
        left = self._left()
        if self._display is None and left is not None and (self._waiting or stage.share() < 1):
            words.append(f"about {_duration(left)} left")
        self._say(f"{_styled(stage.name):<20} {escape('  '.join(word for word in words if word))}")

    def _stage_end(self, stage: _Stage, event: Event) -> None:
        took = _number(event, "seconds")
        if stage.part and _text(event, "stage") != stage.name:
            if stage.parts <= NAMED:
                self._say(f"{_styled(stage.name)} {escape(f'{stage.part}  {_quality(event)}')}")
            stage.parts_ended, stage.part = stage.parts_ended + 1, ""
            return
        stage.seconds = self._clock() - stage.began if took is None else took
        self._done.append(stage)
        self._stage = None
        words = f"{_quality(event)}  in {_duration(stage.seconds)}".strip()
        self._say(f"{_styled(stage.name)} [bold]{escape(words)}[/]")

    # --- Display ------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _elapsed(self) -> float:
        return self._clock() - self._began

    def _left(self) -> float | None:
        """Return the seconds left in the run, from the pace so far, or None before there is one."""
        stage = self._stage
        whole: list[tuple[_Stage, float]] = [
            (one, one.seconds)
            for one in self._done
            if one.seconds is not None and one.name != "base"
        ]
        left = 0.0
        if stage is not None:
            share, spent = stage.share(), self._clock() - stage.began
            if share <= 0:
                return None
            left = spent * (1 / share - 1)
            whole.append((stage, spent + left))
        if not whole:
            return None
        works = [(one.work, took) for one, took in whole if one.work]
        pace = sum(t for _, t in works) / sum(w for w, _ in works) if works else None
        typical = sum(took for _, took in whole) / len(whole)
        for name in self._waiting:
            work = self._work.get(name)
            left += pace * work if pace is not None and work else 0.0 if name == "base" else typical
        return left

    def _shown(self) -> RenderableType:
        stage = self._stage
        if stage is None:
            return Text(f"starting  {_duration(self._elapsed())}", style="dim")
        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text(_title(stage.name), style=f"bold {_colour(stage.name)}".strip()),
            Text(f"round {max(stage.round, 1)}/{stage.rounds}"),
            Text(stage.part),
            ProgressBar(total=1.0, completed=stage.share(), width=28),
            Text(f"{stage.share():.0%}"),
            Text(f"{len(stage.ended)}/{stage.clients} clients" if stage.clients else ""),
        )
        facts = [f"loss {_score(stage.loss)}"] if stage.loss is not None else []
        spent = stage.busy_s or self._clock() - stage.began
        if stage.tokens and spent > 0:
            facts.append(f"{stage.tokens / spent:,.0f} tokens/s")
        if stage.up or stage.down:
            facts.append(f"{_size(stage.up)} up, {_size(stage.down)} down")
        facts.append(f"{_duration(self._elapsed())} so far")
        left = self._left()
        if left is not None:
            facts.append(f"about {_duration(left)} left")
        if stage.evaluating:
            facts.append("evaluating")
        after = ", ".join(_title(name) for name in self._waiting)
        lines = [line, Text("  ".join(facts), style="dim")]
        return Group(*lines, *([Text(f"then {after}", style="dim")] if after else []))


# --- Reading events ---------------------------------------------------------------------------


def _number(event: Mapping[str, Any], key: str) -> float | None:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(event: Event, key: str) -> str:
    value = event.get(key)
    return "" if value is None else str(value)


def _items(event: Event, key: str) -> Sequence[object]:
    value = event.get(key)
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = max(round(seconds), 0)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _size(count: float | None) -> str:
    return filesize.decimal(int(max(count or 0.0, 0.0)), precision=2)


def _score(value: float) -> str:
    return f"{value:.3f}"


def _title(name: str) -> str:
    mode, drops, _ = name.partition("~")
    return f"{mode} with drop-outs" if drops else NAMES.get(name, name)


def _colour(stage: str) -> str:
    return MODES.spec(stage).colour if stage in MODES.names() else ""


def _styled(name: str) -> str:
    style = _colour(name)
    title = escape(_title(name))
    return f"[{style}]{title}[/]" if style else title


def _quality(event: Event) -> str:
    """Return what was reached, on both columns where an event has both."""
    columns = [(words, event.get(name)) for name, words in COLUMNS.items()]
    both = [(words, cast("Event", one)) for words, one in columns if isinstance(one, Mapping)]
    if len(both) == len(COLUMNS):
        said = [f"{_figure(one)} on {words}" for words, one in both if _figure(one)]
        return ", ".join([*said[:1], *(text.partition(" ")[2] for text in said[1:])])
    return _figure(event)


def _figure(event: Event) -> str:
    perplexity = _number(event, "perplexity")
    if perplexity is not None:
        return f"perplexity {perplexity:.2f}"
    accuracy, loss = _number(event, "accuracy"), _number(event, "loss")
    words = [f"accuracy {_score(accuracy)}"] if accuracy is not None else []
    return "  ".join([*words, f"loss {_score(loss)}"] if loss is not None else words)
