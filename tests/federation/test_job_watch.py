"""Supervision against a server that is played: what is submitted again, and what is not."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.utils.job_submit_token import validate_submit_token
from nvflare.fuel.flare_api.api_spec import SubmitTokenConflict

from triskel.config.read import parse
from triskel.errors import FederationError, JobError
from triskel.federation import job_folder, job_watch, submissions
from triskel.federation.job_watch import Line
from triskel.federation.kits import Kit
from triskel.federation.session import Session, UnreachableError

JOB = """
name = "tickets"
[data]
source = "clients"
train = "tickets"
text = "text"
label = "label"
classes = ["no", "yes"]
[logits]
public = 0
"""
Step = Mapping[str, Any] | BaseException
DONE = {"status": "FINISHED:COMPLETED", "ended": {"done": True}}
DIED: Mapping[str, Any] = {"status": "FINISHED:EXECUTION_EXCEPTION"}


class Played(Session):
    """A server that plays one list of steps for each submission."""

    def __init__(self, *plays: Sequence[Step], sites: Sequence[str] = ("bank", "shop")) -> None:
        self.plays = [list(play) for play in plays]
        self.connected = list(sites)
        self.sent: list[dict[str, Any]] = []
        self.known: dict[str, str] = {}
        self.tries = 0
        self.unanswered: list[int] = []
        self.logins = 0
        self.step: Mapping[str, Any] = {}

    def sites(self) -> list[str]:
        return self.connected

    def submit(self, folder: Path, token: str) -> str:
        """Make one job for each token; the replies to some submissions are lost."""
        self.tries += 1
        if token not in self.known:
            self.known[token] = self._made(folder)
        if self.tries in self.unanswered:
            raise UnreachableError("no reply in 5 s")
        return self.known[token]

    def _made(self, folder: Path) -> str:
        server = json.loads((folder / "app/config/config_fed_server.json").read_text())
        meta = json.loads((folder / "meta.json").read_text())
        run = server["components"][0]["args"]["spec"]["run"]
        self.sent.append({"run": run, "on": meta["deploy_map"]["app"]})
        return f"job{len(self.sent)}"

    def meta(self, number: str) -> dict[str, Any]:
        play = self.plays[int(number.removeprefix("job")) - 1]
        step = play.pop(0) if len(play) > 1 else play[0]
        if isinstance(step, BaseException):
            raise step
        self.step = step
        return dict(step)

    def running(self) -> tuple[list[str], float]:
        jobs = [f"job{len(self.sent)}"] if self.step.get("active", True) else []
        return jobs, float(self.step.get("since", 1.0))

    def progress(self, number: str) -> dict[str, Any] | None:
        del number
        return self.step.get("progress")

    def fetch(self, number: str, target: Path) -> Path:
        del number
        folder = target / "workspace" / "triskel"
        folder.mkdir(parents=True)
        if "ended" in self.step:
            (folder / "ended.json").write_text(json.dumps(self.step["ended"]))
        return folder


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_S", "RETURN_S", "LOST_S", "SILENT_S"):
        monkeypatch.setattr(job_watch, name, 0.0)


class Supervised:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kit = Kit("anna@lab.example", "admin", tmp_path, "localhost", 1)
        self.out = tmp_path / "out"
        self.said: list[str] = []
        self.shown: list[Mapping[str, Any] | None] = []
        self.monkeypatch = monkeypatch

    def run(self, server: Played, *, patient: bool = True, sites: Sequence[str] = ()) -> None:
        self.opening(server)
        asked = job_folder.request(parse(JOB), (), sites)
        with Line(self.kit, patient=patient, say=self.said.append) as line:
            entry = job_watch.submit(line, asked)
            watch = (self.said.append, self.shown.append)
            job_watch.follow(line, asked, entry, self.out, watch)

    def resume(self, server: Played, *, patient: bool = False) -> None:
        """Take up the last run, as a new process does: from what lies in the kit."""
        self.opening(server)
        entry = submissions.find(self.kit, None)
        with Line(self.kit, patient=patient, say=self.said.append) as line:
            watch = (self.said.append, self.shown.append)
            job_watch.resume(
                line, submissions.asked_of(self.kit, entry.run), entry, self.out, watch
            )

    def opening(self, server: Played) -> None:
        @contextlib.contextmanager
        def opened(kit: Kit) -> Iterator[Played]:
            assert kit == self.kit
            server.logins += 1
            yield server

        self.monkeypatch.setattr(job_watch, "opened", opened)


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervised:
    return Supervised(tmp_path, monkeypatch)


def test_a_job_that_ends_is_sent_once_and_its_folder_copied(supervised: Supervised) -> None:
    server = Played(
        [{"status": "SUBMITTED"}, {"status": "RUNNING", "progress": {"round": 1}}, DONE]
    )
    supervised.run(server)
    assert [sent["on"] for sent in server.sent] == [["server", "bank", "shop"]]
    assert {"round": 1} in supervised.shown
    assert json.loads((supervised.out / "ended.json").read_text()) == {"done": True}


def test_a_result_with_a_link_in_it_is_not_taken(supervised: Supervised, tmp_path: Path) -> None:
    """A server chooses what it sends; what a link leads to is the administrator's own."""
    (tmp_path / "key").write_text("secret")

    class Sends(Played):
        def fetch(self, number: str, target: Path) -> Path:
            folder = super().fetch(number, target)
            (folder / "adapters").mkdir()
            (folder / "adapters" / "adapter_model.safetensors").symlink_to(tmp_path / "key")
            return folder

    with pytest.raises(FederationError, match=r"the result of job job1 is not taken: .* is a link"):
        supervised.run(Sends([DONE]), patient=False)
    assert not (supervised.out / "adapters").exists()


GOLDEN = Path(__file__).parents[1] / "golden" / "result-1-classify.json"


def test_what_a_browser_or_a_desktop_would_run_is_not_taken_and_the_report_is_made_here(
    supervised: Supervised,
) -> None:
    class Sends(Played):
        def fetch(self, number: str, target: Path) -> Path:
            folder = super().fetch(number, target)
            (folder / "report.html").write_text("<script>alert(1)</script>")
            (folder / "result.json").write_text(GOLDEN.read_text())
            (folder / "adapters").mkdir()
            for name in ("run.desktop", "modeling.py", "x.pkl", "y.svg", "README.md"):
                (folder / "adapters" / name).write_text("x")
            return folder

    supervised.run(Sends([DONE]))
    left = {str(x.relative_to(supervised.out)) for x in supervised.out.rglob("*") if x.is_file()}
    assert left == {"ended.json", "result.json", "report.html", "adapters/README.md"}
    page = (supervised.out / "report.html").read_text()
    assert "alert(1)" not in page
    assert len(page) > 10_000


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 99}'])
def test_a_damaged_result_is_said_in_one_sentence(text: str, supervised: Supervised) -> None:
    class Sends(Played):
        def fetch(self, number: str, target: Path) -> Path:
            folder = super().fetch(number, target)
            (folder / "result.json").write_text(text)
            return folder

    server = Sends([DONE])
    with pytest.raises(FederationError, match=r"the result of job job1 is not taken: "):
        supervised.run(server)
    with pytest.raises(FederationError, match=r"the result of job job1 is not taken: "):
        supervised.resume(server, patient=True)
    assert len(server.sent) == 1, "to submit it again would cost the sites and not help"


def test_a_full_disk_is_said_and_no_reason_to_submit_again(supervised: Supervised) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    supervised.monkeypatch.setattr(job_watch, "copied", full)
    server = Played([DONE])
    with pytest.raises(FederationError, match="out cannot be written: No space left on device"):
        supervised.run(server)
    assert len(server.sent) == 1


def test_a_job_without_an_end_is_sent_again_under_its_run_to_who_is_there(
    supervised: Supervised,
) -> None:
    server = Played([DIED], [DONE])
    was = server.submit

    def loses(folder: Path, token: str) -> str:
        number = was(folder, token)
        server.connected = ["bank", "stranger"]
        return number

    supervised.monkeypatch.setattr(server, "submit", loses)
    supervised.run(server)
    first, second = server.sent
    assert first["run"] == second["run"]
    assert second["on"] == ["server", "bank"], "who was not part of the run stays out"
    assert "submitted again as job2 to bank" in supervised.said[-1]
    assert [entry.job for entry in submissions.entries(supervised.kit)] == ["job1", "job2"]


@pytest.mark.parametrize("lost", [[1], [2], [1, 3, 4]], ids=["first", "second", "both"])
def test_a_submission_whose_reply_is_lost_is_not_a_second_job(
    supervised: Supervised, lost: list[int]
) -> None:
    server = Played([DIED], [DONE])
    server.unanswered = lost
    supervised.run(server)
    assert len(server.sent) == 2, "one that died and one more, as if nothing had been lost"
    assert [entry.job for entry in submissions.entries(supervised.kit)] == ["job1", "job2"]
    assert json.loads((supervised.out / "ended.json").read_text()) == {"done": True}


def test_a_lost_reply_is_told_where_nobody_waits_and_the_job_is_found_by_resume(
    supervised: Supervised,
) -> None:
    server = Played([DIED], [DONE])
    with pytest.raises(FederationError):
        supervised.run(server, patient=False)
    server.unanswered = [2]
    with pytest.raises(UnreachableError):
        supervised.resume(server)
    server.connected = ["bank"]
    supervised.resume(server)
    assert len(server.sent) == 2
    assert [entry.job for entry in submissions.entries(supervised.kit)] == ["job1", "job2"]


def test_what_a_submission_is_called_is_what_flare_takes_for_one(
    supervised: Supervised, tmp_path: Path
) -> None:
    server = Played([DIED], [DIED], [DONE])
    supervised.run(server)
    assert len(server.known) == 3
    for token in server.known:
        assert validate_submit_token(token) == token

    class Inner:
        """FLARE's session, to which the same name with other sites in the folder is a conflict."""

        number: str | None = "job7"

        def submit_job(self, folder: str, token: str) -> str:
            raise SubmitTokenConflict(f"{token} was used before {folder}", self.number)

    there = Session.__new__(Session)
    there.kit, there._inner = supervised.kit, Inner()
    assert there.submit(tmp_path, "run-2") == "job7"
    Inner.number = None
    with pytest.raises(FederationError, match="run-2 was used before"):
        there.submit(tmp_path, "run-2")


def test_without_supervision_a_job_without_an_end_is_an_error(supervised: Supervised) -> None:
    server = Played([{**DIED, "job_deploy_detail": ["server: OK", "bank: BYOC not permitted"]}])
    with pytest.raises(FederationError, match=r"without a result \(bank: BYOC not permitted\)"):
        supervised.run(server, patient=False)
    assert len(server.sent) == 1


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (
            {"status": "FINISHED:COMPLETED", "ended": {"done": False, "error": "no such column"}},
            "the job ended: no such column",
        ),
        ({"status": "FINISHED:ABORTED", "ended": {"done": True}}, "job job1 was aborted"),
    ],
)
def test_what_a_restart_cannot_mend_is_not_sent_again(
    supervised: Supervised, step: Mapping[str, Any], why: str
) -> None:
    server = Played([step])
    with pytest.raises(FederationError, match=why):
        supervised.run(server)
    assert len(server.sent) == 1


def test_a_server_that_was_started_anew_has_lost_the_job(supervised: Supervised) -> None:
    lost = {"status": "RUNNING", "active": False, "since": 2.0}
    server = Played([{"status": "RUNNING"}, UnreachableError("gone"), lost], [DONE])
    supervised.run(server)
    assert len(server.sent) == 2
    assert server.logins == 2
    assert "the server was started anew" in supervised.said[-1]


def test_restarts_without_a_new_round_end(supervised: Supervised) -> None:
    server = Played(*[[DIED]] * 20)
    with pytest.raises(FederationError, match="10 times without a new round; given up"):
        supervised.run(server)
    assert len(server.sent) == 11


def test_a_new_round_starts_the_count_again(supervised: Supervised) -> None:
    def round_(number: int) -> list[Step]:
        return [{"status": "RUNNING", "progress": {"stage": "params", "round": number}}, DIED]

    plays = [round_(number) for number in range(1, 13)]
    server = Played(*plays, [DONE])
    supervised.run(server)
    assert len(server.sent) == 13


def test_a_server_that_is_gone_is_waited_for_only_under_supervision(
    supervised: Supervised,
) -> None:
    gone = UnreachableError("the server does not answer")
    with pytest.raises(UnreachableError):
        supervised.run(Played([gone, DONE]), patient=False)
    server = Played([gone, gone, DONE])
    supervised.run(server)
    assert (len(server.sent), server.logins) == (1, 3)


def test_named_sites_are_asked_for_whether_they_are_connected_or_not(
    supervised: Supervised,
) -> None:
    server = Played([DONE])
    supervised.run(server, sites=["clinic", "bank"])
    assert server.sent[0]["on"] == ["server", "clinic", "bank"]


def test_without_a_site_nothing_is_sent(supervised: Supervised) -> None:
    server = Played([DONE], sites=())
    with pytest.raises(FederationError, match="no site is connected"):
        supervised.run(server, patient=False)
    assert server.sent == []


def test_a_run_that_lost_its_supervisor_is_followed_again(supervised: Supervised) -> None:
    server = Played([{"status": "RUNNING"}, KeyboardInterrupt(), {"status": "RUNNING"}, DONE])
    with pytest.raises(KeyboardInterrupt):
        supervised.run(server)
    supervised.resume(server)
    assert len(server.sent) == 1, "it still ran"
    assert json.loads((supervised.out / "ended.json").read_text()) == {"done": True}


LEFT = {"done": False, "again": True, "error": "shop: not heard of for 60 s"}
SHORT: Mapping[str, Any] = {"status": "FINISHED:COMPLETED", "ended": LEFT}


@pytest.mark.parametrize("first", [DIED, SHORT, {"status": "FINISHED:ABORTED"}], ids=str)
@pytest.mark.parametrize("patient", [True, False])
def test_a_run_that_ended_before_its_time_is_submitted_once_more_as_it_was(
    supervised: Supervised, first: Mapping[str, Any], *, patient: bool
) -> None:
    server = Played([first], [DONE])
    with pytest.raises(FederationError):
        supervised.run(server, patient=False, sites=["shop"])
    before = submissions.asked_of(supervised.kit, server.sent[0]["run"])
    supervised.resume(server, patient=patient)
    one, two = server.sent
    assert one == two, "the same run, to the same sites"
    assert before == submissions.asked_of(supervised.kit, two["run"])
    assert before.job == parse(JOB)
    assert "job job1 ended without a result" in supervised.said[-1]
    assert "submitted again as job2 to shop" in supervised.said[-1]
    assert json.loads((supervised.out / "ended.json").read_text()) == {"done": True}


def test_what_a_run_left_before_its_time_is_written_over_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job_watch.free(out, over=True)
    out.mkdir()
    job_watch.free(out)
    for text in ('{"done": false}', '{"done": true}', "[]", "{}", "no JSON", None):
        (out / "ended.json").unlink(missing_ok=True)
        (out / "result.json").write_text("{}")
        if text is not None:
            (out / "ended.json").write_text(text)
        with pytest.raises(JobError, match="is not empty"):
            job_watch.free(out)
        if text == '{"done": false}':
            job_watch.free(out, over=True)
            continue
        with pytest.raises(JobError, match="is not empty"):
            job_watch.free(out, over=True)


def test_a_run_that_is_called_running_and_does_not_is_submitted_again(
    supervised: Supervised,
) -> None:
    lost = {"status": "RUNNING", "active": False}
    server = Played([{"status": "RUNNING"}, KeyboardInterrupt(), lost], [DONE])
    with pytest.raises(KeyboardInterrupt):
        supervised.run(server)
    supervised.resume(server)
    assert len(server.sent) == 2


def test_a_run_that_is_done_is_only_fetched(supervised: Supervised) -> None:
    server = Played([DONE])
    supervised.run(server)
    supervised.out = supervised.out.with_name("again")
    supervised.resume(server)
    assert len(server.sent) == 1
    assert (supervised.out / "ended.json").exists()


def test_to_resume_needs_the_server_the_sites_and_what_was_asked(supervised: Supervised) -> None:
    server = Played([DIED])
    with pytest.raises(FederationError):
        supervised.run(server, patient=False)
    with pytest.raises(UnreachableError):
        supervised.resume(Played([UnreachableError("gone")]))
    server.connected = []
    with pytest.raises(FederationError, match="no site is connected"):
        supervised.resume(server)
    assert len(server.sent) == 1
    (kept,) = (supervised.kit.own / "requests").iterdir()
    kept.write_text("{}")
    with pytest.raises(JobError, match="does not say what was submitted"):
        supervised.resume(server)
    kept.unlink()
    with pytest.raises(JobError, match="was not submitted from this kit"):
        supervised.resume(server)
