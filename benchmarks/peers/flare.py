"""Peer: NVIDIA FLARE's simulator, its own FedAvg over the adapter, clients by its Client API.

    python flare.py WORK OUT                  # the work
    python flare.py WORK OUT --threads 2      # clients share two processes, in turn
    python flare.py WORK OUT --many CLIENTS   # clients that train nothing

Choices: the simulator runs `--threads` clients at once, each in a process of its own; as many as
clients is its default, and the only way in which a client keeps its model between rounds, as a
process that serves several clients starts anew for each. Each process has one torch thread, as
there are as many processes as cores or more. Clients ask for a task every 0.1 s instead of every
2 s, which alone would be most of a short round. The adapter travels as NumPy arrays, its default.
`FedJob.simulator_run` refuses more than 100 clients; only its command line has an option for more.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from flare_server import Server
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner

HERE = Path(__file__).parent


def main() -> None:
    """Simulate."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("work", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--many", type=int, default=0)
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    clients = chosen.many or 4
    os.environ["PYTHONPATH"] = str(HERE)  # where the client processes find `work`
    job = FedJob(name="peers", min_clients=clients)
    job.to_server(
        Server(
            work_folder=str(chosen.work),
            out=str(chosen.out),
            num_clients=clients,
            num_rounds=chosen.rounds,
        )
    )
    job.to_server({"server": {"task_request_interval": 0.1}})
    script = ScriptRunner(
        script=str(HERE / "flare_client.py"),
        script_args=f"{chosen.work} {'--idle' if chosen.many else ''}",
        framework=FrameworkType.RAW,
    )
    job.to_clients(script)
    space = chosen.out / "workspace"
    status = job.simulator_run(
        workspace=str(space), n_clients=clients, threads=chosen.threads or clients
    )
    shutil.rmtree(space, ignore_errors=True)
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
