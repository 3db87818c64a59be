"""What an operator makes and sends, without starting anything."""

import json
import re
import runpy
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from triskel import cli
from triskel.config.read import parse
from triskel.errors import FederationError, JobError
from triskel.federation import (
    distributed,
    job_folder,
    job_watch,
    kits,
    nodes,
    provision,
    submissions,
)
from triskel.federation.harden import authorization, harden, settle, weakness
from triskel.federation.provision import Plan
from triskel.policy.read import load as load_policy
from triskel.report import conclusions
from triskel.report.reading import read as read_result

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

RUNNER = CliRunner()
samples = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "report_samples.py"))
JOB = """
name = "tickets"
rounds = 3
[data]
source = "clients"
train = "tickets"
text = "text"
label = "label"
classes = ["no", "yes"]
[logits]
public = 0
"""
ADMIN = "anna@lab.example"


def triskel(*words: str | Path) -> tuple[int, str]:
    got = RUNNER.invoke(cli.app, ["federation", *map(str, words)])
    return got.exit_code, got.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "f"
    provision.new(folder, Plan(("bank", "hospital"), port=18999, admin=ADMIN))
    return folder


@pytest.fixture
def kit(made: Path, tmp_path: Path) -> Callable[[str], kits.Kit]:
    def copied(name: str) -> kits.Kit:
        found = kits.kit_at(Path(shutil.copytree(made / "kits" / name, tmp_path / name)))
        assert found is not None
        settle(found)
        return found

    return copied


def rules(kit: kits.Kit, name: str = "resources.json") -> dict[str, Any]:
    return kits.read_json(kit.local / name)


# --- Kits -------------------------------------------------------------------------------------


def test_a_federation_is_a_server_its_sites_and_whoever_submits(made: Path) -> None:
    found = kits.kits_in(made)
    assert [(kit.kind, kit.name) for kit in found] == [
        ("server", "server"),
        ("site", "bank"),
        ("site", "hospital"),
        ("admin", ADMIN),
    ]
    assert {(kit.host, kit.port) for kit in found[1:]} == {("localhost", 18999)}
    assert [kit.name for kit in kits.nodes_in(made)] == ["server", "bank", "hospital"]
    assert kits.nodes_in(made, ["bank"]) == kits.nodes_in(made / "kits" / "bank")
    assert kits.admin_in(made).name == kits.admin_in(made / "kits" / ADMIN).name == ADMIN


def test_only_its_owner_can_read_a_kit_or_the_authority(made: Path) -> None:
    for folder in (made / "ca", *(made / "kits").iterdir()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_a_site_is_added_under_the_same_authority_and_nobody_else_changes(made: Path) -> None:
    certificate = (made / "kits" / "bank" / "startup" / "client.crt").read_bytes()
    (shop,) = provision.add(made, ["shop"])
    try:
        root = made / "kits" / "bank" / "startup" / "rootCA.pem"
        assert (shop.path / "startup" / "rootCA.pem").read_bytes() == root.read_bytes()
        assert (root.parent / "client.crt").read_bytes() == certificate
        assert weakness(shop) is None
        with pytest.raises(JobError, match="--site shop is there already"):
            provision.add(made, ["shop"])
    finally:
        shutil.rmtree(shop.path)


def test_each_node_gets_a_policy_of_its_own_that_allows_nothing(made: Path) -> None:
    for node in kits.nodes_in(made):
        policy, _ = load_policy(node.local / "policy.toml")
        assert (policy.site, policy.modes, policy.submitters) == (node.name, (), ())
        assert "                   # what federations" not in (
            node.local / "policy.toml"
        ).read_text(encoding="utf-8").replace("bank", "")


# --- Hardening --------------------------------------------------------------------------------


def test_a_hardened_node_builds_these_classes_and_no_others(
    kit: Callable[[str], kits.Kit],
) -> None:
    assert rules(kit("server"))["class_allow_list"] == [
        "nvflare.collab.runtime.controller.CollabController",
        "triskel.engines.flare.Server",
    ]
    site = rules(kit("bank"))
    assert site["class_allow_list"] == [
        "nvflare.collab.runtime.executor.CollabExecutor",
        "triskel.engines.flare.Client",
    ]
    assert site["class_list_enforcement_mode"] == "enforce"
    paths = {each["id"]: each["path"] for each in site["components"]}
    assert paths["process_launcher"] == "triskel.federation.launcher.Launcher"


@pytest.mark.parametrize("name", ["server", "bank"])
def test_what_a_site_logs_is_neither_sent_nor_received(
    kit: Callable[[str], kits.Kit], name: str
) -> None:
    found = rules(kit(name))
    paths = [each["path"] for each in found["components"]]
    assert paths
    assert not [path for path in paths if "nvflare.app_common.logging" in path]
    assert found.get("allow_log_streaming") == (None if name == "server" else False)


def test_nobody_may_ship_code_and_whoever_submits_may_do_eight_things() -> None:
    rights = authorization()["permissions"]
    assert {role: each["byoc"] for role, each in rights.items()} == dict.fromkeys(
        ("project_admin", "lead", "org_admin", "member"), "none"
    )
    may = {
        *("submit_job", "list_jobs", "get_job_meta", "get_job_log", "app_command"),
        *("abort_job", "download_job", "check_status"),
    }
    assert set(rights["project_admin"]) == set(rights["lead"]) == may | {"byoc"}
    own = {name for name, whose in rights["lead"].items() if whose == "n:submitter"}
    assert own == may - {"submit_job", "list_jobs", "check_status"}
    assert rights["member"] == rights["org_admin"] == {"byoc": "none"}


def test_the_server_keeps_its_jobs_in_its_kit_wherever_that_is(
    kit: Callable[[str], kits.Kit],
) -> None:
    server = kit("server")
    found = rules(server)
    (manager,) = [each for each in found["components"] if each["id"] == "job_manager"]
    storage = found["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"]
    assert manager["args"]["uri_root"] == str(server.path / "jobs")
    assert storage == str(server.path / "snapshots")
    assert found["servers"][0]["heart_beat_timeout"] == 60
    (scheduler,) = [each for each in found["components"] if each["id"] == "job_scheduler"]
    assert scheduler["args"]["max_schedule_count"] == 20_000


def test_the_log_is_quiet_but_for_this_package(kit: Callable[[str], kits.Kit]) -> None:
    loggers = rules(kit("bank"), "log_config.json")["loggers"]
    assert loggers["root"]["level"] == "WARNING"
    assert loggers["triskel"] == {"level": "INFO"}


@pytest.mark.parametrize("name", ["server", "bank"])
def test_hardening_twice_changes_nothing(kit: Callable[[str], kits.Kit], name: str) -> None:
    node = kit(name)
    before = {path.name: path.read_bytes() for path in node.local.iterdir()}
    harden(node)
    assert {path.name: path.read_bytes() for path in node.local.iterdir()} == before
    assert weakness(node) is None


def loosened(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[kits.Kit], None]:
    def apply(kit: kits.Kit) -> None:
        found = rules(kit, name)
        change(found)
        (kit.local / name).write_text(json.dumps(found), encoding="utf-8")

    return apply


LOOSE = {
    "any class": loosened("resources.json", lambda r: r["class_allow_list"].append("*")),
    "no list": loosened("resources.json", lambda r: r.pop("class_allow_list")),
    "warns": loosened(
        "resources.json", lambda r: r.update({"class_list_enforcement_mode": "warn"})
    ),
    "launcher": loosened("resources.json", lambda r: r["components"][-1].update({"path": "x.Y"})),
    "logs": loosened("resources.json", lambda r: r.update({"allow_log_streaming": True})),
    "log sender": loosened(
        "resources.json",
        lambda r: r["components"].append({"id": "site_log_streamer", "path": "x.Y"}),
    ),
    "code": loosened(
        "authorization.json", lambda r: r["permissions"]["project_admin"].update({"byoc": "any"})
    ),
    "any command": loosened(
        "authorization.json", lambda r: r["permissions"].update({"project_admin": "any"})
    ),
    "no rights": lambda kit: (kit.local / "authorization.json").unlink(),
    "no rules": lambda kit: (kit.local / "resources.json").unlink(),
}


@pytest.mark.parametrize("change", LOOSE.values(), ids=LOOSE)
def test_a_node_that_lost_its_hardening_is_not_started_until_it_has_it_again(
    kit: Callable[[str], kits.Kit], change: Callable[[kits.Kit], None]
) -> None:
    site = kit("bank")
    change(site)
    with pytest.raises(FederationError, match=r"bank is not started: .*federation harden"):
        nodes.start(site)
    assert not (site.path / "node.pid").exists()
    assert triskel("harden", site.path)[0] == 0
    assert weakness(site) is None


def test_a_policy_that_was_edited_stays(kit: Callable[[str], kits.Kit]) -> None:
    site = kit("bank")
    (site.local / "policy.toml").write_text('site = "bank"\nmodes = ["params"]\n', encoding="utf-8")
    harden(site)
    assert load_policy(site.local / "policy.toml")[0].modes == ("params",)


def test_a_dead_client_process_is_not_an_error_of_execution() -> None:
    from nvflare.apis.job_launcher_spec import (  # noqa: PLC0415 - skipped above without it
        JobHandleSpec,
        JobReturnCode,
    )

    from triskel.federation.launcher import Handle  # noqa: PLC0415 - skipped above without it

    class Ended(JobHandleSpec):
        code: Any = JobReturnCode.EXECUTION_ERROR
        said: tuple[str, ...] = ()

        def terminate(self) -> None:
            self.said += ("terminate",)

        def poll(self) -> object:
            return self.code

        def wait(self) -> None:
            self.said += ("wait",)

    inner = Ended()
    handle = Handle(inner)
    assert handle.poll() == JobReturnCode.UNKNOWN
    inner.code = JobReturnCode.SUCCESS
    assert handle.poll() == JobReturnCode.SUCCESS
    handle.wait()
    handle.terminate()
    assert inner.said == ("wait", "terminate")


# --- Keys that stay ---------------------------------------------------------------------------


def test_a_key_made_at_a_site_is_never_anywhere_else(tmp_path: Path) -> None:
    lead, site = tmp_path / "lead", tmp_path / "site"
    code, said = triskel("new", lead, "--distributed", "--port", "18998", "--admin", ADMIN)
    assert code == 0
    (mark,) = [line.split(": ")[1] for line in said.splitlines() if "fingerprint: " in line]
    assert triskel("request", site, "--site", "bank")[0] == 0
    (asked,) = site.rglob("*.request.zip")
    key = next(site.rglob("bank.key")).read_bytes()
    with zipfile.ZipFile(asked) as packed:
        assert all(key not in packed.read(name) for name in packed.namelist())
    post = tmp_path / "post" / asked.name
    post.parent.mkdir()
    post.write_bytes(asked.read_bytes())
    assert triskel("approve", lead, post, "--yes")[0] == 0
    signed = post.with_name("bank.signed.zip")
    assert triskel("join", site, signed, "--fingerprint", mark[:-2] + "00")[0] == 1
    assert triskel("join", site, signed, "--fingerprint", mark)[0] == 0
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_bytes()]
    assert holders == [site / "kits" / "bank" / "startup" / "client.key"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    for kit in (*kits.nodes_in(lead), *kits.nodes_in(site)):
        assert weakness(kit) is None
    assert kits.admin_in(lead).name == ADMIN


def test_a_request_with_a_key_in_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bank.request.zip"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("request.json", "{}")
        packed.writestr("bank.key", "secret")
    with pytest.raises(JobError, match="holds a key"):
        distributed.request_of(file)
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("request.json", '{"kind": "site", "name": "bank"}')
    with pytest.raises(JobError, match="holds no key to sign"):
        distributed.request_of(file)
    other = distributed.ask_as(tmp_path, "f", distributed.server_party("fl.lab", 8002))
    with pytest.raises(JobError, match="asks to be a server"):
        distributed.approve(tmp_path, distributed.request_of(other))
    file.write_bytes(b"no zip")
    with pytest.raises(JobError, match="is no request"):
        distributed.request_of(file)


# --- Jobs -------------------------------------------------------------------------------------


def test_the_folder_that_is_sent_is_configuration_and_nothing_else(tmp_path: Path) -> None:
    asked = job_folder.request(parse(JOB), ("params", "split"), ("bank",))
    folder = job_folder.write(tmp_path / "j", asked, ("bank",))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    config = "app/config/config_fed_"
    assert files == {"meta.json", f"{config}server.json", f"{config}client.json"}
    spec = {
        "schema": 1,
        "run": asked.run,
        "job": spec_job(asked),
        "modes": ["params", "split"],
        "sites": ["bank"],
        "on": ["bank"],
    }
    (component,) = kits.read_json(folder / f"{config}client.json")["components"]
    sent = component["args"]["spec"]
    assert len(sent["submission"]) == 32
    now = datetime.now(UTC)
    assert now - timedelta(minutes=5) < datetime.fromisoformat(sent["at"]) <= now
    spec |= {"submission": sent["submission"], "at": sent["at"]}
    again = kits.read_json(
        job_folder.write(tmp_path / "k", asked, ("bank",)) / f"{config}client.json"
    )
    assert again["components"][0]["args"]["spec"]["submission"] != sent["submission"]
    assert kits.read_json(folder / "meta.json") == {
        "name": "tickets",
        "resource_spec": {},
        "min_clients": 1,
        "deploy_map": {"app": ["server", "bank"]},
    }
    assert kits.read_json(folder / f"{config}server.json") == {
        "format_version": 2,
        "workflows": [
            {
                "id": "controller",
                "path": "nvflare.collab.runtime.controller.CollabController",
                "args": {
                    "server_obj_id": "_server",
                    "sync_task_timeout": 60,
                    "max_call_threads": 100,
                },
            }
        ],
        "components": [
            {"id": "_server", "path": "triskel.engines.flare.Server", "args": {"spec": spec}}
        ],
    }
    assert kits.read_json(folder / f"{config}client.json") == {
        "format_version": 2,
        "executors": [
            {
                "tasks": ["*"],
                "executor": {
                    "path": "nvflare.collab.runtime.executor.CollabExecutor",
                    "args": {"client_obj_id": "_client"},
                },
            }
        ],
        "components": [
            {"id": "_client", "path": "triskel.engines.flare.Client", "args": {"spec": spec}}
        ],
    }


def spec_job(asked: job_folder.Request) -> str:
    text = job_folder.spec(asked)["job"]
    assert parse(text) == asked.job
    return str(text)


def test_a_run_has_a_number_of_its_own_and_the_jobs_mode_unless_others_are_named() -> None:
    first, second = (job_folder.request(parse(JOB), (), ()) for _ in range(2))
    assert first.run != second.run
    assert len(first.run) == 12
    assert int(first.run, 16) >= 0
    assert first.modes == ("params",)


def test_names_of_datasets_stay_names_whatever_lies_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "tickets").mkdir()
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    assert job_folder.read_job(tmp_path / "job.toml", ["rounds=7"]).data.train == "tickets"
    assert job_folder.read_job(tmp_path / "job.toml", ["rounds=7"]).rounds == 7
    with pytest.raises(JobError, match="does not exist"):
        job_folder.read_job(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ('data.source="opinions"', 'data.source must be "clients"'),
        ('data.source="csv"', 'data.source must be "clients"'),
        ("data.train=a/b.csv", "data.train must be the name of a dataset"),
        ('data.train="../b"', "data.train must be the name of a dataset"),
        ("data.test=/b", "data.test must be the name of a dataset"),
        ('data.public="~/x"', "data.public must be the name of a dataset"),
        ("data.classes=[]", "data.classes must list the classes"),
        ('data.task="causal"', "train.max_tokens must be set for this task"),
        ("mode=logits", "data.public must name a dataset that all parties hold"),
        ("logits.public=5", "data.public_count must be 0 without data.public"),
        ("mode=split clients.each.bank.rank=4", "clients use different ranks"),
    ],
)
def test_a_job_that_no_federation_can_run_is_refused_with_the_key(change: str, why: str) -> None:
    assert job_folder.unfit(parse(JOB)) is None
    clients = (
        *("clients.partition=iid",) * change.startswith("data.source"),
        *("data.label=", "data.classes=[]") * change.startswith("data.task"),
        *change.split(),
    )
    found = parse(JOB, overrides=clients)
    reason = job_folder.unfit(found)
    assert reason is not None
    assert reason.startswith(why)
    with pytest.raises(JobError, match="tickets cannot run in a federation"):
        job_folder.request(found, (), ())


@pytest.mark.parametrize(("quorum", "least"), [(1.0, 3), (0.6, 2), (0.1, 1)])
def test_a_job_lives_as_long_as_its_quorum_does(quorum: float, least: int, tmp_path: Path) -> None:
    job, sites = parse(JOB, overrides=[f"federation.quorum={quorum}"]), ("bank", "clinic", "shop")
    folder = job_folder.write(tmp_path / "j", job_folder.request(job, ("params",), sites), sites)
    assert kits.read_json(folder / "meta.json")["min_clients"] == least


def test_logits_runs_on_a_public_dataset_that_all_hold() -> None:
    assert job_folder.unfit(parse(JOB, overrides=["mode=logits", "data.public=news"])) is None
    assert job_folder.unfit(parse(JOB, overrides=["data.public=news", "logits.public=9"])) is None


def test_the_list_of_jobs_finds_the_last_one_by_its_number_or_run(
    kit: Callable[[str], kits.Kit],
) -> None:
    admin = kit(ADMIN)
    with pytest.raises(JobError, match="no job was submitted yet"):
        submissions.find(admin, None)
    one, two = (job_folder.Request(parse("rounds = 1"), (), (), run) for run in ("aa", "bb"))
    submissions.note(admin, "11-1", one, ("bank", "shop"))
    last = submissions.note(admin, "22-2", one, ("bank",))
    submissions.note(admin, "33-3", two, ("bank",))
    assert submissions.find(admin, None).job == "33-3"
    assert submissions.find(admin, "11").job == "11-1"
    assert submissions.find(admin, "aa") == last
    assert submissions.sites_of(admin, "aa") == ("bank", "shop")
    with pytest.raises(JobError, match="no submitted job begins with 'zz'"):
        submissions.find(admin, "zz")


def test_only_a_round_that_is_new_counts_as_progress() -> None:
    trail = job_watch.Trail(idle=3)
    trail.note({"stage": "params", "round": 1})
    assert trail.idle == 0
    trail.idle = 2
    for told in (None, {}, {"stage": "params", "round": 1}):
        trail.note(told)
        assert trail.idle == 2
    trail.note({"stage": "split", "round": 1})
    assert trail.idle == 0


# --- What a run came to -----------------------------------------------------------------------


@pytest.fixture
def ended(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A job of which `out` is fetched, with what the engine says of its end in `said`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "f")
    Path("job.toml").write_text(JOB, encoding="utf-8")
    found: dict[str, Any] = {"said": {"done": True}, "result": samples["result"]()}

    def submit(line: job_watch.Line, asked: job_folder.Request) -> submissions.Entry:
        submissions.keep(line.kit, asked)
        return submissions.note(line.kit, "11-1", asked, ("bank", "hospital"))

    def fetch(line: job_watch.Line, number: str, out: Path) -> job_watch.Progress:
        assert (line.kit.kind, number) == ("admin", "11-1")
        out.mkdir()
        (out / "result.json").write_text(json.dumps(found["result"]), encoding="utf-8")
        (out / "report.html").write_text("<!DOCTYPE html>", encoding="utf-8")
        return found["said"]

    monkeypatch.setattr(job_watch, "submit", submit)
    monkeypatch.setattr(job_watch, "fetch", fetch)
    monkeypatch.setattr(job_watch, "wait", lambda *_: job_watch.End("FINISHED:COMPLETED"))
    monkeypatch.setattr(job_watch, "_goes_on", lambda *_: False)
    yield found
    shutil.rmtree("out", ignore_errors=True)


@pytest.mark.parametrize("again", ["resume", "result"])
def test_a_job_that_was_waited_for_ends_as_a_run_in_one_process_does(
    ended: dict[str, Any], again: str
) -> None:
    code, said = triskel("submit", "f", "job.toml", "--out", "out")
    assert code == 0, said
    seen = read_result(ended["result"])
    for run in seen.modes.values():
        assert re.search(rf"(?m)^ *{run.name} .* {run.everybody.accuracy:.3f} ", said), said
    assert all(line in said for line in conclusions.verdict(seen))
    assert said.index("Results  out") < said.index("Report   out/report.html")
    shutil.rmtree("out")
    shown = said[said.index("\n\n") + 1 :]
    code, said = triskel(again, "f", "--out", "out")
    assert code == 0, said
    assert said.endswith(shown)


def test_a_job_that_ended_before_its_time_says_where_what_it_finished_is(
    ended: dict[str, Any],
) -> None:
    ended["said"] = {"done": False, "error": "bank: not heard of for 60 s"}
    for command in (["submit", "f", "job.toml"], ["result", "f"]):
        code, said = triskel(*command, "--out", "out")
        assert code == 1
        assert "the job ended: bank: not heard of for 60 s\nwhat was finished is in out\n" in said
        shutil.rmtree("out")


def test_a_result_of_another_version_is_where_it_was_put(ended: dict[str, Any]) -> None:
    ended["result"] = {"schema": 99}
    code, said = triskel("submit", "f", "job.toml", "--out", "out")
    assert code == 1
    assert "result.json has schema 99" in said
    assert said.endswith("what was fetched is in out\n")


# --- Mistakes on the command line -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["new", "f"], "--site must name the sites"),
        (["new", "f", "--site", "a", "--site", "a"], "twice"),
        (["new", "f", "--site", "a b"], "letters, digits and -"),
        (["new", "f", "--site", "server"], "the server's name"),
        (["new", "f", "--site", "a", "--scheme", "udp"], "--scheme must be tcp or http"),
        (["new", "f", "--site", "a", "--admin", "anna"], "anna@lab.example"),
        (["new", "f", "--site", "a", "--server", "no host"], "a host name"),
        (["new", "f", "--site", "a", "--distributed"], "--distributed takes no --site"),
        (["request", "f"], "give --site NAME"),
        (["request", "f", "--site", "a@b.org"], "give --site NAME"),
        (["start", "f"], "holds no kit"),
        (["submit", "f", "none.toml"], "does not exist"),
        (["submit", "f", "job.toml", "--mode", "magic"], "unknown mode 'magic'"),
        (["submit", "f", "job.toml", "--supervise", "--no-wait"], "leave out --no-wait"),
        (["submit", "f", "job.toml"], "holds no kit"),
        (["add", "f"], "--site must name"),
        (["add", "f", "--site", "b"], "is missing"),
    ],
)
def test_a_mistake_is_one_sentence_and_makes_nothing(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(JOB, encoding="utf-8")
    code, said = triskel(*words)
    assert code == 2
    assert why in " ".join(said.split())
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


def test_without_flare_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(provision, "find_spec", lambda _: None)
    code, said = triskel("new", tmp_path / "f", "--site", "a")
    assert (code, "pip install 'triskel[flare]'" in said) == (1, True)
