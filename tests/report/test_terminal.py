"""The progress display: what it says, where, and that it never stops a run."""

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from triskel.report.terminal import Live
from triskel.types import Watch


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, highlight=False)


def written(to: Console) -> str:
    file = to.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def shown(live: Live) -> str:
    to = console(terminal=False)
    to.print(live._shown())
    return written(to)


def start(live: Live, **more: object) -> None:
    live({"event": "run_start", "stages": ["params", "split"], "clients": ["a", "b"], "rounds": 2})
    live({"event": "stage_start", "stage": "params", "rounds": 2, "work": 400.0, **more})
    live({"event": "round_start", "stage": "params", "round": 1, "clients": ["a", "b"]})


def step(tokens: int = 100, loss: float = 0.5) -> dict[str, Any]:
    return {
        "event": "step",
        "stage": "params",
        "round": 1,
        "client": "a",
        "loss": loss,
        "tokens": tokens,
        "seconds": 0.5,
    }


def end_of_round(number: int = 1) -> dict[str, Any]:
    return {
        "event": "round_end",
        "stage": "params",
        "round": number,
        "accuracy": 0.651,
        "loss": 0.8,
        "seconds": 12.0,
        "up_bytes": 3_690_000,
        "down_bytes": 3_690_000,
    }


def test_live_is_a_watch() -> None:
    watch: Watch = Live(console(terminal=False))
    watch({"event": "run_end", "seconds": 1})


def test_without_a_terminal_a_round_is_one_line_and_steps_are_none() -> None:
    to = console(terminal=False)
    with Live(to) as live:
        start(live)
        for _ in range(50):
            live(step(tokens=1))
            live({"event": "message", "stage": "params", "direction": "up", "bytes": 10})
        live({"event": "client_end", "stage": "params", "client": "a"})
        live(end_of_round())
        live({"event": "stage_end", "stage": "params", "accuracy": 0.7, "seconds": 30})
        live({"event": "run_end", "seconds": 65})
    lines = written(to).splitlines()
    assert len(lines) == 4
    assert lines[0] == "clients: 2, rounds: 2, stages: params, split"
    for words in ("params", "round 1/2", "accuracy 0.651", "loss 0.800", "3.69 MB up", "0:12"):
        assert words in lines[1]
    assert lines[2].startswith("params accuracy 0.700")
    assert lines[3] == "done in 1:05"


def test_on_a_terminal_the_display_shows_the_stage_and_is_gone_at_the_end() -> None:
    to = console(terminal=True)
    with Live(to) as live:
        start(live)
        live(step())
        live(end_of_round())
        assert live._display is not None
    assert live._display is None
    assert "round 1/2" in written(to)
    assert written(to).rstrip().endswith(("\x1b[?25h", "\x1b[1A\x1b[2K", "\x1b[2K"))


def test_the_display_counts_clients_tokens_bytes_and_time() -> None:
    clock = Clock()
    live = Live(console(terminal=False), clock=clock)
    start(live)
    live(step(tokens=100, loss=1.0))
    live(step(tokens=100, loss=0.0))
    live({"event": "message", "stage": "params", "direction": "up", "bytes": 1_840_000})
    live({"event": "message", "stage": "params", "direction": "down", "bytes": 2_400})
    live({"event": "message", "kind": "update", "direction": "up", "client": "a"})
    clock.now += 10
    text = shown(live)
    for words in ("params", "round 1/2", "1/2 clients", "loss 0.900", "200 tokens/s"):
        assert words in text
    assert "1.84 MB up, 2.40 kB down" in text
    assert "0:10 so far" in text
    assert "then split" in text


def test_the_time_left_is_the_rest_of_this_stage_and_as_long_for_the_next() -> None:
    clock = Clock()
    live = Live(console(terminal=False), clock=clock)
    start(live)
    assert live._left() is None
    live(step(tokens=100))
    clock.now += 10
    assert live._left() == pytest.approx(30 + 40)
    assert "50%" not in shown(live)
    assert "25%" in shown(live)


def test_known_work_of_later_stages_scales_their_time() -> None:
    clock = Clock()
    live = Live(console(terminal=False), clock=clock)
    live(
        {
            "event": "run_start",
            "stages": ["base", "params", "split"],
            "clients": ["a"],
            "rounds": 1,
            "work": {"params": 100, "split": 200},
        }
    )
    live({"event": "stage_start", "stage": "base"})
    clock.now += 7
    live({"event": "stage_end", "stage": "base", "seconds": 7})
    live({"event": "stage_start", "stage": "params", "rounds": 1})
    live({"event": "round_start", "stage": "params", "round": 1, "clients": ["a"]})
    clock.now += 10
    live(step(tokens=50))
    assert live._left() == pytest.approx(10 + 40)
    live({"event": "stage_end", "stage": "params", "seconds": 20})
    assert live._left() == pytest.approx(40)


def test_a_stage_of_parts_counts_as_one_and_says_a_line_for_each() -> None:
    to = console(terminal=False)
    live = Live(to)
    live({"event": "run_start", "stages": ["local", "params"], "clients": ["a", "b"], "rounds": 3})
    live({"event": "stage_start", "stage": "local", "rounds": 3})
    for place, client in enumerate(("a", "b")):
        name = f"local:{client}"
        live({"event": "stage_start", "stage": name, "rounds": 3})
        live({"event": "round_start", "stage": name, "round": 1, "clients": [client]})
        live(step() | {"stage": name})
        assert live._stage is not None
        assert live._stage.share() == pytest.approx(place / 2)
        assert client in shown(live)
        live(end_of_round() | {"stage": name})
        live({"event": "stage_end", "stage": name, "accuracy": 0.5, "seconds": 2})
        assert live._stage.share() == pytest.approx((place + 1) / 2)
    live({"event": "stage_end", "stage": "local", "accuracy": 0.6})
    lines = written(to).splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == [
        "each client alone a",
        "each client alone b",
    ]
    assert lines[3].startswith("each client alone accuracy 0.600")
    assert len(lines) == 4


def test_a_resumed_run_does_not_wait_for_what_it_did_before() -> None:
    live = Live(console(terminal=False))
    live({"event": "run_start", "stages": ["base", "params", "split"], "clients": [], "rounds": 1})
    live({"event": "stage_start", "stage": "split"})
    assert live._waiting == []


def test_work_in_steps_is_counted_in_steps() -> None:
    live = Live(console(terminal=False))
    start(live, work=8, unit="steps")
    live(step(tokens=1_000_000))
    assert live._stage is not None
    assert live._stage.share() == pytest.approx(1 / 8)


def test_the_share_never_leaves_what_the_rounds_allow() -> None:
    live = Live(console(terminal=False))
    start(live)
    live(step(tokens=10_000))
    assert live._stage is not None
    assert live._stage.share() == 0.5
    live({"event": "round_start", "stage": "params", "round": 2, "clients": ["a", "b"]})
    live._stage.tokens = 0
    assert live._stage.share() == 0.5


def test_a_note_is_said_and_an_evaluation_is_shown() -> None:
    to = console(terminal=False)
    live = Live(to)
    live({"event": "note", "text": "fetching texts"})
    assert written(to) == "fetching texts\n"
    start(live)
    live({"event": "evaluate", "stage": "params", "round": 1})
    assert "evaluating" in shown(live)
    live(end_of_round())
    assert "evaluating" not in shown(live)


def test_a_warning_is_said_at_once_and_its_brackets_stay_text() -> None:
    to = console(terminal=False)
    live = Live(to)
    live({"event": "warning", "text": "client [red]shop[/red] was late"})
    assert "warning client [red]shop[/red] was late" in written(to)


def test_a_run_that_fails_gives_the_terminal_back() -> None:
    live = Live(console(terminal=True))
    with pytest.raises(ValueError, match="on purpose"), live:
        raise ValueError("on purpose")
    assert live._display is None


def test_a_stage_that_ends_says_both_columns() -> None:
    to = console(terminal=False)
    live = Live(to, clock=Clock())
    both = {"everybody": {"accuracy": 0.443, "loss": 1.1}, "own": {"accuracy": 0.618}}
    with live:
        start(live)
        live({"event": "stage_end", "stage": "params", "accuracy": 0.443, **both, "seconds": 30})
    said = "accuracy 0.443  loss 1.100 on everybody's texts, 0.618 on own texts  in 0:30"
    assert said in written(to)


@pytest.mark.parametrize("shape", [3, None, [], {}])
def test_columns_that_are_none_are_passed_over(shape: object) -> None:
    to = console(terminal=False)
    live = Live(to, clock=Clock())
    with live:
        start(live)
        end = {"event": "stage_end", "stage": "params", "accuracy": 0.5, "seconds": 3}
        live({**end, "everybody": shape, "own": {"accuracy": 0.618}})
    assert "in 0:03" in written(to)


NAMES = ["run_start", "stage_start", "round_start", "step", "message", "client_end"]
NAMES += ["note", "evaluate", "round_end", "stage_end", "run_end", "warning", "something_new"]
KEYS = ["stage", "stages", "rounds", "round", "clients", "client", "loss", "tokens", "seconds"]
KEYS += ["bytes", "direction", "accuracy", "work", "text", "unit", "up_bytes"]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1000),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
EVENTS = st.builds(
    lambda name, rest: {**rest, "event": name},
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
)


@settings(max_examples=60)
@given(st.lists(EVENTS, max_size=12))
def test_no_event_stops_a_run(events: list[dict[str, Any]]) -> None:
    live = Live(console(terminal=False))
    for event in events:
        live(event)
        shown(live)
