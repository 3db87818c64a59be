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

from triskel.engines.flare.calls import Lost
from triskel.engines.flare.host import Host
from triskel.engines.flare.site import Site
from triskel.job import Job, load, parse, to_toml
from triskel.policy.weights import weights

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
    tables['datasets."news.csv"'] = [
        "paths = ['../../news.csv']", columns, "public = true",
    ]  # fmt: skip
    for table, lines in tables.items():
        top += ["", f"[{table}]", *lines]
    return "\n".join(top) + "\n"


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
        (root / name / "reviews.csv").write_text(here.read_text())
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
    """

    target: Callable[[str, Mapping[str, Any]], Any]
    lose: Callable[[str, Mapping[str, Any]], str] = field(default=lambda _m, _a: "")

    def call(self, method: str, timeout_s: float, arguments: Mapping[str, Any]) -> Any:
        assert timeout_s > 0
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
            name: Site(name, house_.root / name, spec, up(name), submitter) for name in sites
        }
        self.down = {
            name: Loop(lambda m, a, s=site: self.visit(s, m, a), losing(name))
            for name, site in self.sites.items()
        }
        self.stop = threading.Event()
        self.host = Host(
            house_.root / "server", spec, self.down, submitter,
            lambda: "stopped by the test" if self.stop.is_set() else "",
        )  # fmt: skip
        self.out = house_.root / "out"

    def serve(self, name: str, method: str, arguments: Mapping[str, Any]) -> Any:
        """What the server's published methods do."""
        board = self.host.engine.board
        if method == "fetch":
            return board.fetch(name, arguments["play"])
        return board.ask(
            name, arguments["play"], ticket=arguments["ticket"], taken=arguments["taken"],
            waits=arguments["waits"], data=arguments["data"],
        )  # fmt: skip

    def visit(self, site: Site, method: str, arguments: Mapping[str, Any]) -> Any:
        """What a site's published methods do; models are loaded one at a time in one process."""
        if method != "hello":
            return getattr(site, method)(**arguments)
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
