"""The process launcher of a site: one client process that dies does not end the job of the others.

FLARE's own launcher reports a dead process as an error of execution, and the server then ends the
job for every site. This one says that it does not know what became of the process; the engine finds
out by pinging its clients and goes on with those that answer.
"""

from typing import Any

from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher


class Handle(JobHandleSpec):
    """A running client process, whose death is not reported."""

    def __init__(self, inner: JobHandleSpec) -> None:
        super().__init__()
        self.inner = inner

    def terminate(self) -> None:
        """End the process."""
        self.inner.terminate()

    def poll(self) -> Any:  # noqa: ANN401 - FLARE's codes are untyped
        """Return how the process ended, and "unknown" where it died or still runs."""
        code = self.inner.poll()
        return JobReturnCode.UNKNOWN if code == JobReturnCode.EXECUTION_ERROR else code

    def wait(self) -> None:
        """Wait until the process ends."""
        self.inner.wait()


class Launcher(ClientProcessJobLauncher):
    """Starts a client process with the Python that runs the node."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: Any) -> JobHandleSpec:  # noqa: ANN401
        """Start the process of a job."""
        return Handle(super().launch_job(job_meta, fl_ctx))
