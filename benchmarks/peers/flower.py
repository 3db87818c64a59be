"""Peer: Flower's simulation, its own FedAvg over the adapter.

    python flower.py WORK OUT                  # the model is kept in the actor's process
    python flower.py WORK OUT --reload         # every client loads it anew
    python flower.py WORK OUT --cpus 2         # one actor with both cores, instead of two with one
    python flower.py WORK OUT --many CLIENTS   # clients that train nothing

Choices, for one machine of two cores: as many actors as cores (`num_cpus` 1; Ray then gives each
actor one thread), or one actor with all of them, whichever `--cpus` says. `run_simulation` starts
fewer processes than `flwr run`, which Flower recommends over it, so it is the faster way in.
Telemetry is off. Federated evaluation is off, as no peer evaluates while it is timed.
"""

import argparse
from pathlib import Path

import flower_app
from flwr.simulation import run_simulation


def main() -> None:
    """Simulate."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("work", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--reload", action="store_true")
    options.add_argument("--cpus", type=int, default=1)
    options.add_argument("--many", type=int, default=0)
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    task = flower_app.Task(
        work=chosen.work,
        out=chosen.out,
        reload=chosen.reload,
        many=chosen.many,
        rounds=chosen.rounds,
    )
    run_simulation(
        server_app=flower_app.server(task),
        client_app=flower_app.client(task),
        num_supernodes=chosen.many or 4,
        backend_config={"client_resources": {"num_cpus": chosen.cpus, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main()
