"""The site's audit log: what was decided and what left, in a chain that shows an edit."""

import errno
import hashlib
import json
import os
import runpy
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from triskel import cli
from triskel.codec import encode
from triskel.config.job import Job
from triskel.errors import DataError
from triskel.policy import hash_chain
from triskel.policy.audit import Audit
from triskel.policy.hash_chain import AuditError, Chain, read
from triskel.policy.listing import line_of
from triskel.policy.refusal import Refusal
from triskel.types import Message, Section
from triskel.wire import pack

patience = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "patience.py"))["patience"]

NOON = datetime(2026, 11, 16, 12, tzinfo=UTC)
RUN = "0123456789ab"
ADAPTER = Section(
    kind="lowrank",
    tensors={
        f"{i}.lora_{side}": torch.randn(*shape)
        for i in range(3)
        for side, shape in (("A", (2, 8)), ("B", (6, 2)))
    },
    facts={"scale": 2.0},
)
UPDATE = Message(
    kind="update", sections={"adapter": ADAPTER}, facts={"round": 7, "examples": 31, "loss": 0.125}
)


def noon() -> datetime:
    return NOON


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def written(log: Path, count: int = 4) -> list[str]:
    """Write some lines; return their hashes."""
    writer = Chain(log, noon)
    return [writer.append("note", {"i": i}) for i in range(count)]


def kinds(log: Path) -> list[str]:
    return [entry["what"] for entry in read(log)]


def broken_at(log: Path) -> int:
    """At which line the log is said to be broken, which is after all lines above were read."""
    entries: list[Any] = []
    with pytest.raises(AuditError, match="is broken at line") as caught:
        entries.extend(read(log))
    number = int(str(caught.value).partition("at line ")[2].partition(":")[0])
    assert number == len(entries) + 1
    return number


# --- What a line says -------------------------------------------------------------------------


def test_what_leaves_is_logged_by_shape_bytes_and_hash_and_never_by_value(log: Path) -> None:
    coded = encode(UPDATE, "bf16")
    data = pack(coded)
    noted = Audit(log, RUN, noon).left(coded, data, stage="params", round_=7)
    (line,) = read(log)
    assert line == {
        "n": 1,
        "at": "2026-11-16T12:00:00.000+00:00",
        "what": "left",
        "previous": "0" * 64,
        "run": RUN,
        "kind": "update",
        "topic": "",
        "stage": "params",
        "round": 7,
        "facts": ["examples", "loss", "round"],
        "sections": {
            "adapter": {
                "kind": "lowrank",
                "codec": ["bf16"],
                "facts": ["bf16:dtype", "scale"],
                "tensors": {"BF16 [2, 8]": 3, "BF16 [6, 2]": 3},
                "bytes": 3 * 2 * (16 + 12),
            }
        },
        "bytes": len(data),
        "message_sha256": hashlib.sha256(data).hexdigest(),
        "sha256": noted,
    }
    assert "0.125" not in log.read_text()
    assert line_of(line) == (
        f"    1 2026-11-16T12:00:00.000+00:00 {RUN} left    update of params round 7: adapter "
        f"(lowrank: 3 of BF16 [2, 8] + 3 of BF16 [6, 2]); {len(data)} bytes, SHA-256 "
        f"{line['message_sha256']}"
    )


def test_the_round_of_a_line_is_the_sites_whatever_the_message_says(log: Path) -> None:
    for said in ("\x1b[2J", 9, None):
        message = Message(
            kind="ask", topic="knowledge", facts={} if said is None else {"round": said}
        )
        Audit(log, RUN, noon).left(message, pack(message), stage="logits", round_=2)
    for line in read(log):
        assert (line["stage"], line["round"]) == ("logits", 2)
        assert f" {RUN} left    ask knowledge of logits round 2: no section; " in line_of(line)


OLD = (  # as the first versions of the log were written, without runs and stages
    '{"n":1,"at":"2026-11-16T12:00:00.000+00:00","what":"decided","previous":"' + "0" * 64 + '",'
    '"allowed":true,"job":"opinions","mode":"params","by":"ann","job_sha256":"194934ab8a1bc694a6a29'
    'ec517ce6f04a9c552b9abcbb447340bb8b9a718fbfa","policy_sha256":"'
    + "ab"
    * 32
    + '","refusals":[],'
    '"sha256":"788abc9fd62b2a65ea3dd59b9f277a6e82031a963e03be31e5f1ede5d4e24aa4"}\n'
    '{"n":2,"at":"2026-11-16T12:00:00.000+00:00","what":"told","previous":"788abc9fd62b2a65ea3dd59b9f'
    '277a6e82031a963e03be31e5f1ede5d4e24aa4","facts":{"examples":31},"sha256":"da7a6b0905dc24c905924d'
    'c43fa955bfd2778d1b13acb769911c7d08b829780a"}\n'
    '{"n":3,"at":"2026-11-16T12:00:00.000+00:00","what":"left","previous":"da7a6b0905dc24c905924dc43f'
    'a955bfd2778d1b13acb769911c7d08b829780a","kind":"update","topic":"","facts":["round"],"sections":'
    '{"adapter":{"kind":"dense","codec":[],"facts":[],"tensors":{"F32 [2, 3]":1},"bytes":24}},'
    '"bytes":227,"message_sha256":"2abd21fa9b92080af04caacdb7b5e1d4ca4cb7af92dc0581ccc93871e35af1d1","round":'
    '7,"sha256":"65ce60d4a96147314560ca5a6945bc6f123f0e771986b79d6b5424ab8fc59ab4"}\n'
)


def test_a_log_of_before_is_verified_and_gone_on_with(log: Path) -> None:
    log.write_text(OLD, encoding="ascii")
    Audit(log, RUN, noon).told({"examples": 31})
    lines = list(read(log, seen="65ce60d4a96147314560ca5a6945bc6f123f0e771986b79d6b5424ab8fc59ab4"))
    assert [line.get("run") for line in lines] == [None, None, None, RUN]
    assert log.read_text(encoding="ascii").startswith(OLD)
    shown = [line_of(line).partition("+00:00 ")[2] for line in lines]
    assert shown[:2] == ["allowed job 'opinions' (mode params) of 'ann'", "told    examples 31"]
    assert shown[2].startswith("left    update of round 7: adapter (dense: 1 of F32 [2, 3]); 227 ")
    assert shown[3] == f"{RUN} told    examples 31"


def test_a_failure_is_logged_by_its_kind_and_by_what_was_told(log: Path) -> None:
    audit = Audit(log, RUN, noon)
    audit.failed("DataError", "DataError; the log of site 'bank' says more")
    audit.failed("RoundError", "round 2 is over\n", stage="split", round_=2)
    before, later = read(log)
    assert "stage" not in before
    assert "round" not in before
    assert (later["run"], later["stage"], later["round"]) == (RUN, "split", 2)
    assert line_of(before).endswith(
        f"{RUN} failed  DataError; told: DataError; the log of site 'bank' says more"
    )
    assert line_of(later).endswith("RoundError in split round 2; told: round 2 is over\\n")


def test_a_decision_is_logged_with_who_asked_for_what_and_every_refusal(log: Path) -> None:
    audit = Audit(log, RUN, noon)
    why = Refusal(key="modes", asks="runs", allows="allows none")
    job, policy = Job(name="t" * 999), "ab" * 32
    audit.decided(job, [why], to="read", policy_sha256=policy, submitter="\x1b[2Jeve\n")
    audit.decided(Job(), [], to="send", policy_sha256=policy)
    refused, allowed = read(log)
    assert [(one["run"], one["to"]) for one in (refused, allowed)] == [(RUN, "read"), (RUN, "send")]
    assert (refused["allowed"], allowed["allowed"]) == (False, True)
    assert refused["refusals"] == ["modes: the job runs; this site allows none"]
    assert (len(refused["job"]), refused["mode"], allowed["by"]) == (200, "params", None)
    assert refused["policy_sha256"] == "ab" * 32
    assert refused["job_sha256"] != allowed["job_sha256"]
    shown = line_of(refused)
    assert shown.isprintable()
    assert shown.endswith("of '\\x1b[2Jeve\\n'; modes: the job runs; this site allows none")
    assert " refused job 'ttt" in shown
    assert line_of(allowed).endswith(f"{RUN} allowed job 'opinions' (mode params, to send) of None")


def test_the_log_is_its_owners_alone_and_its_hashes_are_recomputed_by_anyone(log: Path) -> None:
    hashes = written(log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    previous = "0" * 64
    for number, (line, noted) in enumerate(zip(log.read_text().splitlines(), hashes, strict=True)):
        body, _, seal = line.rpartition(',"sha256":')
        assert seal == f'"{noted}"}}'
        assert hashlib.sha256((body + "}").encode()).hexdigest() == noted
        assert json.loads(line)["previous"] == previous
        assert json.loads(line)["n"] == number + 1
        previous = noted


def test_what_a_line_is_about_cannot_forge_its_number_time_or_chain(log: Path) -> None:
    about = {"n": 9, "at": "never", "what": "left", "previous": "f" * 64}
    Chain(log, noon).append("note", about)
    (line,) = read(log)
    assert (line["n"], line["what"], line["previous"]) == (1, "note", "0" * 64)


# --- Edits ------------------------------------------------------------------------------------


def test_an_edited_line_is_found_wherever_it_is(log: Path) -> None:
    written(log)
    whole = log.read_bytes()
    for number in range(1, 5):
        log.write_bytes(whole.replace(f'"i":{number - 1}'.encode(), b'"i":8'))
        assert broken_at(log) == number
        with pytest.raises(AuditError, match=f"at line {number}"):
            Chain(log).append("note", {})
        assert log.read_bytes().count(b"\n") == 4, "nothing is added to a broken log"


@settings(
    max_examples=60,
    suppress_health_check=[
        *settings().suppress_health_check,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_no_byte_can_be_changed_unseen(log: Path, place: float, byte: int) -> None:
    log.unlink(missing_ok=True)
    written(log, 3)
    data = bytearray(log.read_bytes())
    at = int(place * len(data))
    if data[at] == byte or at == len(data) - 1:  # the last newline is a kill's to take
        return
    data[at] = byte
    log.write_bytes(data)
    assert broken_at(log) <= 3


@pytest.mark.parametrize(
    ("order", "line"),
    [
        ([0, 2, 3], 2),
        ([1, 2, 3], 1),
        ([0, 1, 1, 2, 3], 3),
        ([0, 2, 1, 3], 2),
        ([0, b"\n", 1, 2], 2),
        ([0, b" ", 1, 2], 2),
        ([0, b"[" * 90_000 + b"\n", 1], 2),
        ([0, 1, 2, b"x" * (5 << 20)], 4),
        ([0, b"\xff\xfe\n"], 2),
    ],
)
def test_a_line_removed_inserted_moved_or_foreign_is_found(
    log: Path, order: list[int | bytes], line: int
) -> None:
    written(log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[one] if isinstance(one, int) else one for one in order))
    assert broken_at(log) == line


def test_a_line_with_a_right_hash_and_wrong_content_is_refused(log: Path) -> None:
    for body in (
        b'{"n":1',
        b'{"n":1,"x":' + b"[" * 9999,
        b'{"n":1,"previous":"' + b"0" * 64 + b'"',
    ):
        sha256 = hashlib.sha256(body + b"}").hexdigest().encode()
        log.write_bytes(body + b',"sha256":"' + sha256 + b'"}\n')
        assert broken_at(log) == 1


def test_a_hash_noted_elsewhere_shows_that_the_end_was_cut_off_or_all_written_anew(
    log: Path, tmp_path: Path
) -> None:
    hashes = written(log)
    assert len(list(read(log, seen=hashes[3]))) == 4
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))
    assert len(list(read(log))) == 3, "the chain alone cannot show it"
    with pytest.raises(AuditError, match="no longer holds"):
        list(read(log, seen=hashes[3]))
    forged = tmp_path / "forged.jsonl"
    Chain(forged, noon).append("note", {"i": 9})
    with pytest.raises(AuditError, match="no longer holds"):
        list(read(forged, seen=hashes[0]))


# --- Kills, full disks, several writers -------------------------------------------------------


def test_a_log_cut_at_any_byte_is_read_and_gone_on_with(log: Path) -> None:
    written(log, 3)
    whole = log.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        log.write_bytes(whole[:size])
        lines = sum(end <= size + 1 for end in ends)  # a lacking newline loses nothing
        piece = size not in {0, *ends, *(end - 1 for end in ends)}
        assert kinds(log) == ["note"] * lines + ["cut"] * piece
        Chain(log, noon).append("after", {})
        assert kinds(log) == ["note"] * lines + ["torn"] * piece + ["after"]
        assert log.read_bytes().startswith(whole[:size]), "nothing was taken away"


def test_a_second_kill_in_the_line_that_notes_the_first_is_noted_too(log: Path) -> None:
    written(log, 2)
    log.write_bytes(log.read_bytes()[:-9])
    before = log.stat().st_size
    Chain(log, noon).append("after", {})
    whole = log.read_bytes()
    for size in range(before + 1, len(whole)):
        log.write_bytes(whole[:size])
        Chain(log, noon).append("again", {})
        assert kinds(log)[0] == "note"
        assert kinds(log)[-1] == "again"


def test_a_piece_that_is_edited_after_it_was_noted_is_found(log: Path) -> None:
    written(log, 2)
    log.write_bytes(log.read_bytes()[:-9])
    Chain(log, noon).append("after", {})
    log.write_bytes(log.read_bytes().replace(b'"i":1', b'"i":7'))
    assert broken_at(log) == 2


def test_a_cut_end_is_told_in_words(log: Path) -> None:
    written(log, 1)
    log.write_bytes(log.read_bytes()[:-9])
    said = [line_of(entry) for entry in read(log)]
    assert said[0].endswith("as a kill leaves it")
    Chain(log, noon).append("after", {})
    assert "bytes of a line that was not finished" in line_of(next(iter(read(log))))


def test_on_a_full_disk_nothing_is_said_to_be_written_and_later_lines_go_on(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Chain(log, noon)
    writer.append("note", {})
    with monkeypatch.context() as patch:
        patch.setattr(hash_chain.os, "write", _filling(100))
        with pytest.raises(AuditError, match=r"No space left on device; nothing may leave"):
            writer.append("lost", {"text": "x" * 500})
    assert kinds(log) == ["note", "cut"]
    writer.append("note", {})
    assert kinds(log) == ["note", "torn", "note"]


def _filling(room: int) -> Callable[[int, bytes], int]:
    """Stand in for os.write on a disk with so many bytes left."""
    real, left = os.write, [room]

    def write(handle: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(handle, data[: left[0]])
        left[0] -= done
        return done

    return write


def test_a_line_that_may_not_be_on_disk_is_not_said_to_be(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = Chain(log, noon)
    with monkeypatch.context() as patch:
        patch.setattr(hash_chain.os, "fsync", fails)
        with pytest.raises(AuditError, match="nothing may leave"):
            writer.append("note", {})
    writer.append("note", {})
    assert kinds(log) == ["note", "note"]


def test_a_line_is_on_disk_before_its_writer_returns(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(
        hash_chain.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size)
    )
    writer = Chain(log, noon)
    for _ in range(2):
        writer.append("note", {})
        assert log.stat().st_size in synced
    assert len(synced) == 3, "the folder too, once"


@pytest.mark.parametrize("place", ["a-file/log", "."])
def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(AuditError, match="cannot be written"):
        Chain(tmp_path / place).append("note", {})
    with pytest.raises(DataError, match="cannot be read"):
        list(read(tmp_path / place))


def test_a_line_that_is_far_too_long_is_refused_and_leaves_no_trace(log: Path) -> None:
    writer = Chain(log, noon)
    writer.append("note", {})
    with pytest.raises(AuditError, match="at most 1048576 bytes"):
        writer.append("note", {"text": "x" * (1 << 20)})
    assert kinds(log) == ["note"]


@pytest.mark.parametrize("how", ["cut", "replaced", "gone"])
def test_a_log_that_is_cut_or_replaced_under_its_writer_is_noticed(log: Path, how: str) -> None:
    writer = Chain(log, noon)
    writer.append("note", {})
    writer.append("note", {})
    if how == "cut":
        log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    else:
        other = log.with_name("other")
        written(other, 5 if how == "replaced" else 0)
        other.touch()
        other.replace(log)
    with pytest.raises(AuditError, match="was cut or replaced"):
        writer.append("note", {})


def test_writers_that_take_turns_make_one_chain(log: Path) -> None:
    one, two = Chain(log, noon), Chain(log, noon)
    for i in range(3):
        one.append("one", {"i": i})
        two.append("two", {"i": i})
    assert kinds(log) == ["one", "two"] * 3


def test_threads_and_processes_at_once_lose_no_line(log: Path) -> None:
    shared = Chain(log)
    script = (
        "import sys, pathlib; from triskel.policy.hash_chain import Chain\n"
        "log = Chain(pathlib.Path(sys.argv[1]))\n"
        "for i in range(20): log.append('process', {'i': i})\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(log)])
    own = [
        threading.Thread(target=lambda w=w: [w.append("thread", {}) for _ in range(10)])
        for w in (shared, shared, Chain(log))
    ]
    for thread in own:
        thread.start()
    for thread in own:
        thread.join()
    assert other.wait(patience(60)) == 0
    found = kinds(log)
    assert (found.count("process"), found.count("thread"), len(found)) == (20, 30, 50)


def test_a_writer_that_never_lets_go_stops_what_would_leave(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_chain, "PATIENCE_S", 0.05)
    with FileLock(f"{log}.lock"), pytest.raises(AuditError, match="held by another process"):
        Chain(log).append("note", {})
    assert Chain(log).append("note", {})


# --- Lists for people -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"sections": [], "topic": 3, "round": []},
        {"sections": {"a": 3, "\x1b": {"tensors": 4}, "b": {"tensors": {"\n": []}}}},
        {"refusals": 3, "job": ["\x1b"]},
        {"run": "\x1b[2J", "to": "\n", "stage": "\x1b", "facts": {"\x1b": "\n"}, "told": "\x1b"},
        {"run": ["\x1b"], "to": 4, "stage": {}, "facts": 3, "error": b"".decode()},
        {"refusals": ["\x1b[2J\n", 4]},
    ],
)
@pytest.mark.parametrize("what", ["left", "decided", "told", "failed", "\x1b[2J"])
def test_a_line_somebody_else_wrote_is_listed_without_harm(
    log: Path, what: str, about: dict[str, Any]
) -> None:
    Chain(log, noon).append(what, about)
    (entry,) = read(log)
    assert line_of(entry).isprintable()


def test_time_that_runs_backwards_is_a_finding_although_the_hashes_hold(log: Path) -> None:
    times = [0, 10, 9, 11, 5, 30]
    for second in times:
        at = datetime(2026, 11, 27, 12, 0, second, tzinfo=UTC)
        Chain(log, lambda at=at: at).append("told", {"facts": {}})
    got = CliRunner().invoke(cli.app, ["site", "audit", str(log)])
    assert got.exit_code == 1
    assert "6 lines, none changed" in got.output
    found = [line for line in got.output.splitlines() if "time runs backwards" in line]
    assert [line.partition(":")[0] for line in found] == ["line 5"], "a second back is a clock's"


def test_a_link_in_a_logs_place_is_neither_read_nor_written(log: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    log.symlink_to(victim)
    with pytest.raises(AuditError, match="cannot be written"):
        Chain(log).append("told", {})
    with pytest.raises(DataError, match="is a link"):
        list(read(log))
    assert victim.read_text() == ""


def test_a_link_in_its_locks_place_makes_no_file(log: Path, tmp_path: Path) -> None:
    log.with_name(f"{log.name}.lock").symlink_to(tmp_path / "planted")
    with pytest.raises(AuditError):
        Chain(log).append("told", {})
    assert not (tmp_path / "planted").exists()
