"""Organisations in folders of one machine: policies, data and a model, with links between them.

`house` writes what a server and its sites have; `Loop` is a link without a network, on which calls
can be lost. The same job file runs in one process and between the sites.
"""

# ruff: noqa: ANN401 - calls carry anything

import runpy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triskel.config.job import MODE_NAMES, Job
from triskel.config.read import load, parse, to_toml
from triskel.engines import flare
from triskel.engines.flare import (
    protocol,
    server_calls,
    server_inbox,
    server_job,
    server_play,
    server_roster,
    site_job,
    site_rounds,
)
from triskel.engines.flare.protocol import Lost
from triskel.engines.flare.server_job import ServerJob
from triskel.engines.flare.server_rounds import RemoteEngine
from triskel.engines.flare.site_job import SiteJob
from triskel.policy.model_hash import weights
from triskel.training.mode_setting import mode_of
from triskel.wire.ledger import Ledger

small = runpy.run_path(str(Path(__file__).parent / "small.py"))
SITES = ("bank", "clinic", "shop")
ANNA = "anna@lab.example"
RUN = "0123456789ab"


@dataclass
class House:
    """Where everything lies.

    Attributes:
        root: Folder of it all; `server/` and one folder a site are nodes.
        text: The job file.
    """

    root: Path
    text: str

    @property
    def job(self) -> Job:
        """The job as sites read it: names."""
        return parse(self.text)

    @property
    def local(self) -> Job:
        """The job as one process reads it: files beside the job file."""
        place = self.root / "job.toml"
        place.write_text(self.text, encoding="utf-8")
        return load(place)

    def spec(self, *modes: str, run: str = RUN, **more: Any) -> dict[str, Any]:
        return {"schema": 1, "run": run, "job": to_toml(self.job), "modes": list(modes), **more}


def policy(name: str, sha256: str, **changes: str) -> str:
    """A policy that allows what the tests' jobs ask for."""
    keys = {
        "modes": '["params", "logits", "split"]',
        "submitters": f'["{ANNA}"]',
        "codecs": '["fp32", "raw", "int8"]',
        "leave.activations": "true",
        "leave.labels": "true",
        "split.first": "0",
        "limits.message_mb": "256.0",
        "limits.cohort": "2",  # what a quorum of 0.6 leaves of three
        "floors.train": "1",
        "floors.test": "1",
        "scores.loss_step": "0.0",  # so that figures are those of one process
        "scores.share_step": "0.0",
        "scores.table": "true",
        **{
            f"budget.{what}{day}": "100000"
            for what in ("jobs", "rounds", "scores")
            for day in ("", "_day")
        },
        "budget.mb": "1e6",
        "budget.mb_day": "1e6",
    } | changes
    top = [f'site = "{name}"'] if name != "server" else []
    top += [f"{key} = {value}" for key, value in keys.items() if "." not in key]
    tables: dict[str, list[str]] = {"models": [f'tiny = "{sha256}"']}
    for key, value in keys.items():
        if "." in key:
            table, _, own = key.rpartition(".")
            tables.setdefault(table, []).append(f"{own} = {value}")
    columns = "columns = { text = 'text', label = 'label', answer = 'answer' }"
    if name != "server":
        tables["datasets.reviews"] = ["paths = ['../reviews.csv']", columns]
        tables["datasets.tests"] = ["paths = ['../tests.csv']", columns]
    tables['datasets."news.csv"'] = [
        "paths = ['../../news.csv']", columns, "public = true",
    ]  # fmt: skip
    for table, lines in tables.items():
        top += ["", f"[{table}]", *lines]
    return "\n".join(top) + "\n"


def held_out(rows: Path, tests: Path) -> None:
    """Put every fifth row of a file into a file of tests; who holds out what is no matter here."""
    head, *lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    tests.parent.mkdir(parents=True, exist_ok=True)
    tests.write_text(head + "".join(lines[::5]), encoding="utf-8")
    left = [line for number, line in enumerate(lines) if number % 5]
    rows.write_text(head + "".join(left), encoding="utf-8")


def house(
    root: Path,
    *,
    task: str = "classify",
    model: Path | None = None,
    rows: tuple[int, ...] = (14, 9, 20),
    longest: int = 9,
    **more: str,
) -> House:
    """Write three sites with unequal shares, a server, and a job of two rounds."""
    tiny = model or small["save_model"](root / "tiny")
    if model is not None:
        (root / "tiny").symlink_to(model)
    sha256 = weights(tiny).sha256
    small["save_rows"](root / "news.csv", 9, start=50)
    for name, count in zip(SITES, rows, strict=True):
        place = root / "reviews" / f"{name}.csv"
        here = small["save_rows"](place, count, start=count, longest=longest)
        (root / name / "local" / "models").mkdir(parents=True)
        held_out(here, root / "tests" / f"{name}.csv")
        for what in ("reviews", "tests"):
            own = root / what / f"{name}.csv"
            (root / name / f"{what}.csv").write_text(own.read_text())
    (root / "server" / "local" / "models").mkdir(parents=True)
    for name in ("server", *SITES):
        (root / name / "local" / "models" / "tiny").symlink_to(tiny)
        (root / name / "local" / "policy.toml").write_text(policy(name, sha256))
    data = 'text = "text"\nlabel = "label"\nclasses = ["bad", "fair", "good"]'
    if task == "causal":
        data = 'prompt = "text"\nresponse = "answer"\ntemplate = "{prompt} {response}"'
    keys = {
        "rounds": "2",
        "model.path": '"tiny"',
        "model.dtype": '"float32"',
        "model.compute": '"reference"',
        "adapter.rank": "2",
        "adapter.alpha": "4.0",
        "data.task": f'"{task}"',
        "data.source": '"clients"',
        "data.train": '"reviews"',
        "data.test": '"tests"',
        "data.public": '"news.csv"',
        "train.batch": "4",
        "train.max_tokens": "12",
        "logits.public": "6",
        "federation.patience_s": "20",
    } | more
    tables: dict[str, list[str]] = {}
    for key, value in keys.items():
        table, _, own = key.rpartition(".")
        tables.setdefault(table, []).append(f"{own} = {value}")
    tables["data"].append(data)
    lines = tables.pop("", [])
    for table, inner in tables.items():
        lines += ["", f"[{table}]", *inner]
    return House(root, "\n".join(lines) + "\n")


@dataclass
class Loop:
    """A link in one process: calls are made directly, unless the link is told to lose them.

    Attributes:
        target: The methods of the other side.
        lose: Given method and arguments: `before` loses the call, `after` the reply.
        silent: Told of each lost call.
    """

    target: Callable[[str, Mapping[str, Any]], Any]
    lose: Callable[[str, Mapping[str, Any]], str] = field(default=lambda _m, _a: "")
    silent: Callable[[], None] = field(default=lambda: None)

    def call(self, method: str, timeout_s: float, arguments: Mapping[str, Any]) -> Any:
        assert timeout_s > 0
        try:
            return self._called(method, arguments)
        except Lost:
            self.silent()
            raise

    def _called(self, method: str, arguments: Mapping[str, Any]) -> Any:
        lost = self.lose(method, arguments)
        if lost == "before":
            raise Lost(method)
        reply = self.target(method, arguments)
        if lost == "after":
            raise Lost(method)
        return reply


class Meeting:
    """A server and its sites in one process.

    Args:
        house: Where everything lies.
        spec: What was submitted.
        lose: As of `Loop`, given the site's name too; for calls in both directions.
    """

    def __init__(
        self,
        house_: House,
        spec: Mapping[str, Any],
        lose: Callable[[str, str, Mapping[str, Any]], str] = lambda _s, _m, _a: "",
        sites: tuple[str, ...] = SITES,
        submitter: str = ANNA,
    ) -> None:
        self.lost: list[tuple[str, str]] = []
        self.loading = threading.Lock()  # a model's head is drawn from the process's one stream

        def losing(name: str) -> Callable[[str, Mapping[str, Any]], str]:
            def found(method: str, arguments: Mapping[str, Any]) -> str:
                how = lose(name, method, arguments)
                if how:
                    self.lost.append((name, method))
                return how

            return found

        def up(name: str) -> Loop:
            return Loop(lambda method, arguments: self.serve(name, method, arguments), losing(name))

        self.sites = {
            name: SiteJob(name, house_.root / name, spec, up(name), submitter) for name in sites
        }
        self.down = {
            name: Loop(
                lambda m, a, s=site: self.visit(s, m, a), losing(name), lambda n=name: self._age(n)
            )
            for name, site in self.sites.items()
        }
        self.stop, self.crossed = threading.Event(), [0, 0]
        self.host = ServerJob(
            house_.root / "server", spec, self.down, submitter,
            stopped=lambda: "stopped by the test" if self.stop.is_set() else "",
            crossed=lambda: (self.crossed[0], self.crossed[1]),
        )  # fmt: skip
        self.out = house_.root / "out"

    def _count(self, up: object, down: object) -> None:
        """Count the bytes that cross, as an engine with a network would."""
        for way, told in enumerate((up, down)):
            values = told.values() if isinstance(told, Mapping) else ()
            self.crossed[way] += sum(len(x) for x in values if type(x) is bytes)

    def _age(self, name: str) -> None:
        """Let a second pass for who cannot be reached: nobody waits, and nobody else grows old."""
        engine = self.host.engine
        for inbox in {*engine._buffer.inboxes, engine.inbox} if engine else ():
            if inbox and name in inbox.lines:
                inbox.lines[name].heard -= 1.0

    def serve(self, name: str, method: str, arguments: Mapping[str, Any]) -> Any:
        """What the server's published methods do."""
        inbox = self.host.engine.box(arguments["play"])
        if method == "fetch":
            reply = inbox.fetch(name, arguments["play"])
        else:
            reply = inbox.ask(
                name, arguments["play"], ticket=arguments["ticket"], taken=arguments["taken"],
                waits=arguments["waits"], data=arguments["data"],
            )  # fmt: skip
        self._count(arguments, reply)
        return reply

    def visit(self, site: SiteJob, method: str, arguments: Mapping[str, Any]) -> Any:
        """What a site's published methods do; models are loaded one at a time in one process."""
        if method != "hello":
            reply = getattr(site, method)(**arguments)
            self._count(reply, arguments)
            return reply
        with self.loading:
            reply = site.hello(**arguments)
            while reply["state"] == "preparing":
                reply = site.hello(**arguments)
            return reply

    def play(self) -> dict[str, Any]:
        try:
            return self.host.play(self.out)
        finally:
            for site in self.sites.values():
                site.close()
            for site in self.sites.values():
                site._hand.shutdown()  # nothing of a site goes on into the next test


class OwnTime(threading.local):
    """A clock of each thread's own, that goes on while the thread pauses, and stands otherwise."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def hurry(patch: Any) -> None:
    """Let no call and no pause last long; who is waited for in vain is so by the clock alone."""
    patch.setattr(server_roster, "time", OwnTime())
    for module in (server_inbox, protocol, site_job, server_calls):
        patch.setattr(module, "HOLD_S", 0.3)
    for module in (server_job, server_calls, site_rounds):
        patch.setattr(module, "AGAIN_S", 0.01)
    patch.setattr(server_play, "TURN_S", 0.05)


def nobody() -> Any:
    raise AssertionError("clients are at their sites")


Real = Callable[..., Any]


def plain(_site: str, _method: str, _arguments: Mapping[str, Any], real: Real) -> Any:
    """Make the call as it is."""
    return real()


class Party:
    """A server and its sites, ready to play single rounds again and again.

    Attributes:
        twist: Stands between the two sides; it may change, make up, lose or repeat any call.
    """

    def __init__(self, house_: House, modes: tuple[str, ...] = MODE_NAMES) -> None:
        self.house, self.twist = house_, plain
        self.meeting = Meeting(house_, house_.spec(*modes))
        for name, one in self.meeting.sites.items():
            self._between(name, self.meeting.down[name])
            self._between(name, one._server)
        host_ = self.meeting.host
        assert host_._admitted() == ""
        self.resources = host_._prepared(
            house_.job, lambda _: None, house_.root / "choices.json", modes=modes
        )
        self.modes = {name: mode_of(self.resources.setting(name, lambda _: None)) for name in modes}

    def _between(self, name: str, link: Any) -> None:
        real = link.target

        def target(method: str, arguments: Mapping[str, Any]) -> Any:
            def whole(**changes: Any) -> Any:
                return flare._answered(lambda: real(method, {**arguments, **changes}), name)

            return self.twist(name, method, arguments, whole)

        link.target = target

    def engine(self, stage: str, **options: Any) -> RemoteEngine:
        """A server's engine of its own, with other options of `federation`."""
        job = self.house.job
        wanted = job.federation.model_copy(update=options)
        engine = RemoteEngine(
            job=job.model_copy(update={"federation": wanted}),
            peers=self.meeting.down,
            welcome=self.meeting.host._roster.welcome,
        )
        engine.stage, self.meeting.host.engine = stage, engine
        return engine

    def round(
        self, stage: str, who: tuple[str, ...] = SITES, engine: RemoteEngine | None = None,
        state: Any = None, **options: Any,
    ) -> tuple[Any, Ledger]:  # fmt: skip
        """Play one round, from the start or from a state; return what it leaves."""
        engine, ledger = engine or self.engine(stage, **options), Ledger()
        mode: Any = self.modes[stage]
        if state is None:  # what was counted before is of another run
            engine.counted.clear()
        after = engine.round(
            mode, mode.start() if state is None else state, who, worker=lambda _: nobody(),
            client_states={}, keep=lambda _client, _state: None, ledger=ledger,
            watch=lambda _: None,
        )  # fmt: skip
        return after, ledger

    def scores(
        self, stage: str, engine: RemoteEngine | None = None, state: Any = None, **options: Any
    ) -> Any:
        """Test what a round left, or the start."""
        engine, mode = engine or self.engine(stage, **options), self.modes[stage]
        tested = mode.start() if state is None else state
        return engine.scores(mode, tested, SITES, self.resources.body())

    def close(self) -> None:
        for one in self.meeting.sites.values():
            one.close()
