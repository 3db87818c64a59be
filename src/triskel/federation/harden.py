"""What a kit allows once it is hardened: this package's classes, no shipped code, few commands.

As FLARE provisions it, a node runs dozens of FLARE's classes and takes code with a job. A hardened
one builds the classes in `CLASSES` and nothing else; whoever submits may submit, watch, abort and
fetch jobs and nothing else; job store and snapshots stay in the kit. FLARE also sends the server
what a site's job logs as an error, tracebacks and paths included; here it stays at the site. A node
that has lost any of it is not started.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from triskel.errors import JobError
from triskel.federation.kits import Kind, Kit, read_json
from triskel.policy.template import TEMPLATE

SERVER_CLASS = "triskel.engines.flare.Server"
CLIENT_CLASS = "triskel.engines.flare.Client"
CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
LAUNCHER = "triskel.federation.launcher.Launcher"
DOORMAN = {"id": "doorman", "path": "triskel.federation.doorman.Doorman", "args": {}}
CALLER = {"id": "caller", "path": "triskel.federation.caller.Caller", "args": {}}
CLASSES: Mapping[Kind, tuple[str, ...]] = {
    "server": (CONTROLLER, SERVER_CLASS),
    "site": (EXECUTOR, CLIENT_CLASS),
}
"""What a job may name; it replaces FLARE's list."""
COMMANDS = (
    "submit_job",
    "list_jobs",
    "get_job_meta",
    "get_job_log",
    "app_command",
    "abort_job",
    "download_job",
    "check_status",
)
"""What whoever submits may do; FLARE refuses what is not named."""
OTHERS_JOBS = frozenset({"get_job_meta", "get_job_log", "app_command", "abort_job", "download_job"})
"""Commands that the role `lead` has on jobs of its own only."""
ROLES = ("project_admin", "lead", "org_admin", "member")
COMMENTS = 29
"""The column of the comments in the template of a policy."""
PATIENCE: Mapping[str, float] = {
    "min_schedule_interval": 5.0,
    "max_schedule_interval": 30.0,
    "max_schedule_count": 20_000,
}
"""How the server waits for the sites of a job: looks every 30 s, for a week; FLARE's own way is ten
times, ever less often."""
SILENCE_S = 60
"""Seconds after which the server counts a silent site as gone; FLARE's own value is 600."""


def authorization() -> dict[str, Any]:
    """Return who may do what on a hardened node."""
    never = {"byoc": "none"}
    lead = {name: "n:submitter" if name in OTHERS_JOBS else "any" for name in COMMANDS}
    rights: dict[str, Any] = dict.fromkeys(ROLES, never)
    rights |= {"project_admin": dict.fromkeys(COMMANDS, "any") | never, "lead": lead | never}
    return {"format_version": "1.0", "permissions": rights}


def harden(kit: Kit) -> None:
    """Write a node's rules; whatever else stands in its files stays. Twice changes nothing.

    Raises:
        JobError: The kit's files cannot be read.
    """
    if kit.kind == "admin":
        return
    resources = _found(kit, "resources.json")
    for change in _CHANGES[kit.kind]:
        change(kit, resources)
    _write(kit.local / "resources.json", resources)
    _write(kit.local / "authorization.json", authorization())
    _write(kit.local / "log_config.json", _quiet(_found(kit, "log_config.json")))
    policy = kit.local / "policy.toml"
    if not policy.exists():
        empty = 'site = ""'.ljust(COMMENTS)
        named = f"site = {json.dumps(kit.name)}".ljust(COMMENTS)
        policy.write_text(TEMPLATE.replace(empty, named, 1), encoding="utf-8")


def weakness(kit: Kit) -> str | None:
    """Return what a node has lost of its hardening, in one sentence, or None."""
    if kit.kind == "admin":
        return None
    rights, there = kit.local / "authorization.json", kit.local / "resources.json"
    if not rights.is_file() or read_json(rights) != authorization():
        return f"{rights} grants other rights than a hardened node does"
    if not there.is_file():
        return f"{there} is missing, so that FLARE's own classes would run here"
    resources = read_json(there)
    if tuple(resources.get("class_allow_list", ())) != CLASSES[kit.kind]:
        return f"class_allow_list in {there} is not that of a hardened node"
    for change in _CHANGES[kit.kind][1:]:
        before = json.dumps(resources)
        change(kit, resources)
        if json.dumps(resources) != before:
            return f"{there} is not that of a hardened node (see `{change.__name__.strip('_')}`)"
    return None


def settle(kit: Kit) -> None:
    """Write where the server keeps its jobs, which a kit that was moved knows wrongly."""
    if kit.kind != "server" or not (kit.local / "resources.json").is_file():
        return
    resources = read_json(kit.local / "resources.json")
    _inside(kit, resources)
    _write(kit.local / "resources.json", resources)


def _classes(kit: Kit, resources: dict[str, Any]) -> None:
    resources["class_allow_list"] = list(CLASSES[kit.kind])


def _enforced(_kit: Kit, resources: dict[str, Any]) -> None:
    resources["class_list_enforcement_mode"] = "enforce"


def _launcher(kit: Kit, resources: dict[str, Any]) -> None:
    _component(kit, resources, "process_launcher")["path"] = LAUNCHER


def _no_log_sent(_kit: Kit, resources: dict[str, Any]) -> None:
    _without(resources, "site_log_streamer")
    resources["allow_log_streaming"] = False


def _no_log_received(_kit: Kit, resources: dict[str, Any]) -> None:
    _without(resources, "log_receiver")


def _heart_beat_timeout(_kit: Kit, resources: dict[str, Any]) -> None:
    for server in resources["servers"]:
        server["heart_beat_timeout"] = SILENCE_S


def _job_scheduler(kit: Kit, resources: dict[str, Any]) -> None:
    _component(kit, resources, "job_scheduler").setdefault("args", {}).update(PATIENCE)


def _doorman(_kit: Kit, resources: dict[str, Any]) -> None:
    _without(resources, DOORMAN["id"])
    resources["components"].append(DOORMAN)


def _caller(_kit: Kit, resources: dict[str, Any]) -> None:
    _without(resources, CALLER["id"])
    resources["components"].insert(0, CALLER)


def _inside(kit: Kit, resources: dict[str, Any]) -> None:
    jobs = _component(kit, resources, "job_manager")
    jobs.setdefault("args", {})["uri_root"] = str(kit.path / "jobs")
    storage = resources["snapshot_persistor"]["args"]["storage"]
    storage["args"]["root_dir"] = str(kit.path / "snapshots")


def _without(resources: dict[str, Any], name: object) -> None:
    others = [one for one in resources["components"] if one.get("id") != name]
    resources["components"] = others


_CHANGES: Mapping[Kind, tuple[Callable[[Kit, dict[str, Any]], None], ...]] = {
    "server": (
        *(_classes, _enforced, _heart_beat_timeout, _job_scheduler),
        *(_doorman, _no_log_received, _inside),
    ),
    "site": (_classes, _enforced, _launcher, _no_log_sent, _caller),
}


def _component(kit: Kit, resources: Mapping[str, Any], name: str) -> dict[str, Any]:
    for component in cast("list[dict[str, Any]]", resources.get("components", [])):
        if component.get("id") == name:
            return component
    raise JobError(f"{kit.local / 'resources.json'} has no component {name!r}; make the kit anew")


def _quiet(log: dict[str, Any]) -> dict[str, Any]:
    """Return a log configuration with FLARE's two lines per call left out, and ours kept."""
    loggers = log.setdefault("loggers", {})
    loggers.setdefault("root", {})["level"] = "WARNING"
    loggers["triskel"] = {"level": "INFO"}
    loggers["nvflare.private.fed.client.fed_client"] = {"level": "INFO"}  # says: registered
    return log


def _found(kit: Kit, name: str) -> dict[str, Any]:
    there = kit.local / name
    return read_json(there if there.is_file() else there.with_name(f"{name}.default"))


def _write(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
