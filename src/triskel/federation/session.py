"""The administrator's connection to a running federation; the only place that speaks FLARE's API.

Every connection is closed whatever happens: one left open keeps the interpreter from ending.
"""

import contextlib
import io
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

from triskel.errors import FederationError
from triskel.federation.kits import Kit
from triskel.federation.provision import need_flare

LOGIN_S = 10.0
TOPIC = "triskel.status"
"""What the engine answers while a job runs."""
FINISHED = "FINISHED"


class Session:
    """One login; every method raises FederationError where the server refuses or is gone."""

    def __init__(self, kit: Kit, login_s: float = LOGIN_S) -> None:
        need_flare()
        logging.getLogger("nvflare").setLevel(logging.CRITICAL)
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        self.kit = kit
        with self._said("log in"):
            self._inner: Any = new_secure_session(
                kit.name, str(kit.path), timeout=login_s, auto_login_max_tries=2
            )

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            self._inner.close()

    @contextlib.contextmanager
    def _said(self, doing: str) -> Generator[None, None, None]:
        where = f"{self.kit.host}:{self.kit.port}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except Exception as error:
            kind = type(error).__name__
            if kind in {"NoConnection", "SessionClosed", "SessionExpired", "ConnectionError"}:
                raise UnreachableError(
                    f"the server at {where} does not answer; `triskel federation start` starts it"
                ) from error
            raise FederationError(
                f"cannot {doing} at {where}: {str(error) or kind} ({kind})"
            ) from error

    def sites(self) -> list[str]:
        """Return the names of the connected sites."""
        with self._said("ask for the sites"):
            return sorted(str(each.name) for each in self._inner.get_connected_client_list())

    def running(self) -> tuple[list[str], float]:
        """Return the numbers of the jobs that run now, and since when the server does."""
        with self._said("ask for the jobs"):
            found = self._inner.get_system_info()
            started = found.server_info.start_time
            return [str(each.job_id) for each in found.job_info], float(started or 0.0)

    def submit(self, folder: Path, token: str) -> str:
        """Send a job folder; return FLARE's number of the job.

        Args:
            folder: The job.
            token: What this submission is called. A job that the server has of that name is the
                one that counts, whatever is in the folder now.
        """
        from nvflare.fuel.flare_api.api_spec import SubmitTokenConflict

        with self._said("submit the job"):
            try:
                return str(self._inner.submit_job(str(folder.resolve()), token))
            except SubmitTokenConflict as earlier:
                if not earlier.existing_job_id:
                    raise
                return str(earlier.existing_job_id)

    def meta(self, job: str) -> dict[str, Any]:
        """Return what FLARE knows of a job."""
        with self._said(f"ask about job {job}"):
            return dict(self._inner.get_job_meta(job))

    def progress(self, job: str) -> dict[str, Any] | None:
        """Return what the engine says of a job; None where it does not run, or not yet."""
        with contextlib.suppress(FederationError), self._said("ask for the progress"):
            found = self._inner.do_app_command(job, TOPIC, {})
            return dict(found) if isinstance(found, dict) else None
        return None

    def log(self, job: str) -> str:
        """Return the server's log of a job."""
        with self._said(f"read the log of job {job}"):
            found = self._inner.get_job_logs(job, "server")
            return str(found.get("logs", {}).get("server", ""))

    def abort(self, job: str) -> None:
        """End a job."""
        with self._said(f"abort job {job}"):
            self._inner.abort_job(job)

    def fetch(self, job: str, target: Path) -> Path:
        """Copy what a job left on the server into a folder; return the run's folder in it."""
        with self._said(f"fetch the result of job {job}"):
            return Path(self._inner.download_job_result(job, str(target))) / "workspace" / "triskel"


class UnreachableError(FederationError):
    """The server does not answer now; it may later."""


@contextlib.contextmanager
def opened(kit: Kit, login_s: float = LOGIN_S) -> Generator[Session, None, None]:
    """Log in, and out again whatever happens.

    Raises:
        FederationError: The server is not there, or refuses this administrator.
    """
    session = Session(kit, login_s)
    try:
        yield session
    finally:
        session.close()
