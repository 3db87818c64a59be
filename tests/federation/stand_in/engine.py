"""An engine that trains nothing: the operator's side is tried with it, without torch or a model.

Rounds last `seed` milliseconds. A client that does not answer a ping is down from then on. A job
called `refused` is refused. Closed rounds are kept in the server's kit under the run's number.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.collab import CollabCallError, collab

from triskel.config.read import parse

REPLY_S = 5.0 * float(os.environ.get("TRISKEL_SLOWNESS", "1"))
"""How long it waits for a reply: as tests do (`tests/helpers/patience.py`)."""
LOST = (CollabCallError, TimeoutError, RuntimeError)


class Client:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.seconds = parse(spec["job"]).seed / 1000

    @collab.publish
    def ping(self) -> str:
        return "pong"

    @collab.publish
    def work(self) -> None:
        time.sleep(self.seconds)


class Server:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.run, self.job = spec["run"], parse(spec["job"])
        self.now: dict[str, Any] = {}

    @collab.init
    def begin(self) -> None:
        engine = collab.fl_ctx.get_engine()
        engine.register_app_command("triskel.status", lambda *_: self.now)

    @collab.main
    def main(self) -> None:
        out = Path(collab.workspace.get_run_dir(collab.fl_ctx.get_job_id())) / "triskel"
        out.mkdir()
        if self.job.name == "refused":
            end(out, done=False, error="bank: its policy does not allow the mode params")
            return
        kept = Path(collab.workspace.get_root_dir()) / "triskel" / f"{self.run}.json"
        kept.parent.mkdir(exist_ok=True)
        closed: list[int] = json.loads(kept.read_text()) if kept.exists() else []
        live = {client.name for client in collab.clients}
        (out / "first.json").write_text(json.dumps(len(closed) + 1))
        for number in range(len(closed) + 1, self.job.rounds + 1):
            self.tell(number, live)
            live &= {name for name in sorted(live) if answers(name)}
            with suppress(*LOST):  # who dies at work is missed at the next ping
                collab.get_clients(sorted(live))(timeout=2 * REPLY_S).work()
            if collab.is_aborted:
                return
            closed.append(number)
            kept.write_text(json.dumps(closed))
        (out / "tally.json").write_text(json.dumps({"closed": closed, "live": sorted(live)}))
        end(out, done=True)

    def tell(self, number: int, live: set[str]) -> None:
        clients = {
            client.name: {"state": "working" if client.name in live else "down"}
            for client in collab.clients
        }
        self.now = {
            "run": self.run,
            "stage": "params",
            "round": number,
            "rounds": self.job.rounds,
            "clients": clients,
            "waiting_for": sorted(live),
            "up_bytes": 1000 * number,
            "down_bytes": 2000 * number,
        }


def answers(name: str) -> bool:
    try:
        return list(collab.get_clients([name])(timeout=REPLY_S).ping()) != []
    except LOST:
        return False


def end(out: Path, **said: object) -> None:
    (out / "ended.json").write_text(json.dumps(said))
