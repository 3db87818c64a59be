"""Events: made in one module, as its types say, and cheap enough for every training step."""

import ast
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from triskel.core import events
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run

HERE = Path(__file__).parents[1]
SMALL = SimpleNamespace(**runpy.run_path(str(HERE / "helpers" / "small.py")))
SOURCE = HERE.parent / "src" / "triskel"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a comparison tells, and the lines of its log."""
    room = tmp_path_factory.mktemp("events")
    job = SMALL.job(
        SMALL.save_model(room / "model"), SMALL.save_rows(room / "rows.csv", 40), rounds=2
    )
    heard: list[Any] = []
    run(job, Request(), room / "run", LocalEngine(job), heard.append)
    lines = (room / "run" / events.NAME).read_text(encoding="utf-8").splitlines()
    return SimpleNamespace(folder=room / "run", heard=heard, log=[json.loads(x) for x in lines])


def test_events_are_made_in_one_module() -> None:
    for file in SOURCE.rglob("*.py"):
        if file == SOURCE / "core" / "events.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            keys = node.keys if isinstance(node, ast.Dict) else ()
            said = [key.value for key in keys if isinstance(key, ast.Constant)]
            assert "event" not in said, f"{file}, line {getattr(node, 'lineno', 0)}"


def test_what_a_comparison_tells_is_what_the_types_say(told: SimpleNamespace) -> None:
    shape, named = TypeAdapter[Any](events._ANY), events.schema_of()["$defs"]
    fields, needed = dict[str, set[str]](), dict[str, set[str]]()
    for one in named.values():
        kind = one["properties"]["event"]
        for name in kind.get("enum") or [kind["const"]]:
            fields[name], needed[name] = set(one["properties"]), set(one["required"])
    for event in (*told.heard, *told.log):
        assert needed[event["event"]] <= set(event) <= fields[event["event"]], event
        shape.validate_python(event)
    assert {"run_start", "stage_start", "round_start", "step", "message", "round_end"} <= {
        event["event"] for event in told.heard
    }


def test_keys_of_the_log_stand_in_the_order_in_which_they_always_stood(
    told: SimpleNamespace,
) -> None:
    def keys(kind: str, log: list[Any]) -> list[str]:
        return list(next(e for e in log if e["event"] == kind and e.get("stage") != "base"))

    opening = ["stages", "clients", "rounds", "examples", "work"]
    figures = ["accuracy", "macro_f1", "loss", "n"]
    spent = ["seconds", "up_bytes", "down_bytes", "flops"]
    assert keys("run_start", told.log) == ["time", "event", *opening]
    assert keys("stage_start", told.log) == ["time", "event", "stage", "rounds"]
    assert keys("round_start", told.log) == ["time", "event", "clients", "stage", "round"]
    assert keys("evaluate", told.log) == ["time", "event", "stage", "round"]
    assert keys("round_end", told.log) == ["time", "event", "round", *figures, *spent, "stage"]
    assert keys("stage_end", told.log) == [
        "time", "event", "stage", *figures, "own", "everybody", "seconds",
    ]  # fmt: skip
    assert keys("run_end", told.log) == ["time", "event", "seconds"]
    step = ["event", "client", "round", "phase", "loss", "tokens", "stage"]
    assert keys("step", told.heard) == step
    assert keys("message", told.heard) == [
        "event", "client", "direction", "kind", "topic", "bytes", "stage", "round",
    ]  # fmt: skip
    made = events.step("a", round_=1, phase="local", loss=0.5, tokens=3)
    assert [*made, "stage"] == step


def test_a_log_tells_when_its_run_began(told: SimpleNamespace, tmp_path: Path) -> None:
    assert events.began(told.folder) == told.log[0]["time"]
    assert events.began(tmp_path) is None
    for line in (
        "",
        "{",
        '{"event": "note"}',
        '{"time": -1}',
        '{"time": "x"}',
        "3",
        '{"time": NaN}',
    ):
        (tmp_path / events.NAME).write_text(line, encoding="utf-8")
        assert events.began(tmp_path) is None, line


def test_a_stamp_adds_where_it_happened_and_leaves_the_event_as_it_was() -> None:
    heard: list[Any] = []
    event = events.note("x")
    events.stamped(events.stamped(heard.append, stage="params"), round=2)(event)
    assert heard == [{"event": "note", "text": "x", "round": 2, "stage": "params"}]
    assert event == {"event": "note", "text": "x"}
