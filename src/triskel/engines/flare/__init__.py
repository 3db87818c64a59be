"""A job between organisations, on NVIDIA FLARE.

`Server` and `Client` are what FLARE makes on each side out of a job's configuration; no code comes
with a job. FLARE brings transport, certificates, mutual TLS and who is who; the rest is here:
`server_job` and `server_rounds` at the server, `site_job` at each organisation, `server_inbox`
where asks wait, `protocol` what is said. Nothing below this file knows FLARE.
"""

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from nvflare.collab import CollabCallError, collab
from nvflare.collab.runtime import dispatch
from nvflare.fuel.f3.stats_pool import StatsPoolManager

from triskel.engines.flare.protocol import Lost, Reply, span, text, whole
from triskel.engines.flare.server_job import ServerJob
from triskel.engines.flare.signatures import admit_once, not_revoked, signer_of
from triskel.engines.flare.site_job import SiteJob
from triskel.errors import JobError, MessageError, TriskelError
from triskel.policy.hash_chain import now

LOGGER = logging.getLogger("triskel.flare")
STATUS = "triskel.status"
MIB = 1 << 20
"""FLARE's megabyte."""
SERVER = "server"


class _Proxy:
    """The way to a peer through FLARE; usable from any thread."""

    def __init__(self, proxy: Any) -> None:  # noqa: ANN401 - FLARE's own
        self._proxy = proxy

    def call(self, method: str, timeout_s: float, arguments: Mapping[str, Any]) -> Reply:
        """Call a published method.

        Raises:
            Lost: No reply came, or none that is one.
        """
        try:
            reply = getattr(self._proxy(timeout=timeout_s), method)(**arguments)
        except CollabCallError as error:
            raise Lost(str(error)) from error
        if not isinstance(reply, dict):
            raise Lost(f"{method} was answered with {type(reply).__name__}")
        return cast("Reply", reply)


def _answered(what: Callable[[], Reply], caller: str) -> Reply:
    """Return a reply whatever happens: an exception would travel with its trace."""
    try:
        return _noted(what(), caller)
    except MessageError as error:
        LOGGER.warning("a call of %s was refused: %s", caller, error)
        return {"state": "failed", "gone": str(error), "error": str(error)}
    except TriskelError as error:
        LOGGER.error("a call of %s failed: %s", caller, error)  # noqa: TRY400 - one sentence
        kind = type(error).__name__
        return {"state": "failed", "gone": kind, "error": kind}
    except Exception as error:
        LOGGER.exception("a call of %s failed", caller)
        kind = type(error).__name__
        return {"state": "failed", "gone": kind, "error": kind}


def _trace() -> str:
    """Keep what FLARE would send of a call that it cannot make: its trace, with paths of files."""
    LOGGER.error("a call was refused", exc_info=sys.exception())
    return ""


dispatch.secure_format_traceback = _trace


def _noted(reply: Reply, caller: str) -> Reply:
    if gone := reply.get("gone"):
        LOGGER.info("a call of %s was turned away: %s", caller, gone)
    return reply


def _crossed() -> tuple[int, int] | None:
    """Return the bytes of payload that FLARE counted in this process, received and sent."""
    found: list[int] = []
    for name in ("received_msg_sizes", "sent_msg_sizes"):  # with the cell's name behind, or not
        pools = [pool for key, pool in StatsPoolManager.pools.items() if key.startswith(name)]
        counted = [pool.to_dict()["cat_data"].values() for pool in pools]
        bins = [b for categories in counted for some in categories for b in some if b]
        found.append(round(sum(b["total"] for b in bins) * MIB))
    return (found[0], found[1]) if any(found) else None


def _signed(spec: Mapping[str, Any], party: str = "") -> tuple[str | None, str]:
    """Return who signed the job, as this side verifies it, or why it is not taken."""
    workspace = collab.workspace
    app = Path(workspace.get_app_dir(collab.fl_ctx.get_job_id()))
    authority = Path(workspace.get_file_path_in_startup("rootCA.pem"))
    root = Path(workspace.get_root_dir())
    try:
        signer = signer_of(app, authority, spec)
        not_revoked(root, signer)
        admit_once(root / "triskel", spec, party, now())
    except JobError as error:
        LOGGER.warning("the job %s", error)
        return None, str(error)
    return signer.name, ""


class Server:
    """The server's object in a FLARE job.

    Args:
        spec: What was submitted.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._host: ServerJob | None = None

    @collab.main
    def play(self) -> None:
        """Play the job; what came of it is in the run folder, whatever it is."""
        workspace, fl_ctx, signal = collab.workspace, collab.fl_ctx, collab.context.abort_signal
        job = fl_ctx.get_job_id()
        out = Path(workspace.get_run_dir(job)) / "triskel"
        peers = {proxy.name: _Proxy(proxy) for proxy in collab.clients}
        wanted = set(self._spec.get("sites") or peers)
        submitter, strange = _signed(self._spec)
        host = ServerJob(
            Path(workspace.get_root_dir()),
            self._spec,
            {name: peer for name, peer in peers.items() if name in wanted},
            submitter,
            strange=strange,
            stopped=lambda: "the job was aborted" if signal.triggered else "",
            crossed=_crossed,
        )
        self._host = host

        def status(*about: object) -> dict[str, Any]:
            del about  # topic, data and FLARE's context
            return host.status()

        fl_ctx.get_engine().register_app_command(STATUS, status)
        LOGGER.info("%s", host.play(out))
        if host.engine is not None and host.engine.absent:
            signal.trigger(True)  # noqa: FBT003 - FLARE waits for calls to those that are gone

    @collab.publish
    def fetch(self, play: object = None) -> Reply:
        """Return the calling site's task."""
        caller = collab.caller
        named = {"play": play}
        return _answered(lambda: self._inbox(named).fetch(caller, text(named, "play")), caller)

    @collab.publish
    def ask(
        self,
        play: object = None,
        ticket: object = None,
        taken: object = None,
        waits: object = None,
        data: object = None,
    ) -> Reply:
        """Take an ask of the calling site, and answer it when it is due."""
        caller = collab.caller

        def taken_in() -> Reply:
            told = {"play": play, "ticket": ticket, "taken": taken}
            if type(data) is not bytes or type(waits) is not bool:
                raise MessageError(f"an ask is made of bytes, got {type(data).__name__}")
            return self._inbox(told).ask(
                caller, text(told, "play"), ticket=whole(told, "ticket", most=2**31),
                taken=whole(told, "taken", most=2**31), waits=waits, data=data,
            )  # fmt: skip

        return _answered(taken_in, caller)

    def _inbox(self, about: Mapping[str, Any]) -> Any:  # noqa: ANN401
        engine = self._host.engine if self._host is not None else None
        inbox = engine.box(text(about, "play")) if engine is not None else None
        if inbox is None:
            raise MessageError("no play is open")
        return inbox


class Client:
    """A site's object in a FLARE job.

    What the server leaves out of a call is None here, and refused in one sentence like what is of
    another type.

    Args:
        spec: What was submitted.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._site: SiteJob | None = None
        self._lock = threading.Lock()

    @collab.publish
    def hello(self, about: object = None) -> Reply:
        """Say who this is and what it holds."""
        return self._called(lambda site: site.hello(_table(about)))

    @collab.publish
    def begin(self, order: object = None) -> Reply:
        """Start a part."""
        return self._called(lambda site: site.begin(_table(order)))

    @collab.publish
    def collect(self, play: object = None, hold_s: object = None) -> Reply:
        """Say how far a part is."""
        told = {"play": play, "hold_s": hold_s}
        return self._called(lambda site: site.collect(text(told, "play"), span(told, "hold_s")))

    @collab.publish
    def hand_over(self, play: object = None) -> Reply:
        """Return the update of a part that is done."""
        return self._called(lambda site: site.hand_over(text({"play": play}, "play")))

    @collab.publish
    def finish(self, stage: object = None, counted: object = 0) -> Reply:
        """Keep the site's own model of a stage."""
        return self._called(
            lambda site: site.finish(
                text({"stage": stage}, "stage"), whole({"counted": counted}, "counted")
            )
        )

    @collab.final
    def end(self) -> None:
        """Stop whatever is played."""
        if self._site is not None:
            self._site.close()

    def _called(self, what: Callable[[SiteJob], Reply]) -> Reply:
        """Serve the server, and nobody else."""
        caller = collab.caller
        if caller != SERVER:
            LOGGER.warning("a call of %s was refused: only the server calls a site", caller)
            return {"state": "failed", "error": "only the server calls a site"}
        return _answered(lambda: what(self._there()), caller)

    def _there(self) -> SiteJob:
        with self._lock:
            if self._site is None:
                submitter, strange = _signed(self._spec, collab.site_name)
                self._site = SiteJob(
                    collab.site_name,
                    Path(collab.workspace.get_root_dir()),
                    self._spec,
                    _Proxy(collab.server),
                    submitter,
                    strange=strange,
                )
            return self._site


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MessageError(f"expected a table, got {type(value).__name__}")
    return cast("Mapping[str, Any]", value)
