"""A FLARE client, as its Client API's documentation writes one: receive, train, send."""

import sys
from pathlib import Path

import nvflare.client as flare
from nvflare.apis.fl_constant import FLMetaKey


def main() -> None:
    """Serve rounds until the server ends."""
    folder, idle = Path(sys.argv[1]), "--idle" in sys.argv
    flare.init()
    if not idle:
        import torch  # noqa: PLC0415 - clients without work need no gigabytes of libraries
        import work  # noqa: PLC0415

        torch.set_num_threads(1)  # a process a client, as many as cores or more
        done = work.read(folder)
        model = work.model_of(done)
        client = done.clients()[int(flare.get_site_name().removeprefix("site-")) - 1]
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        params, facts = received.params, {"num-examples": 1}
        if not idle:
            work.install(model, {n: torch.from_numpy(a) for n, a in params.items()})
            facts = work.train(model, done, client, received.current_round + 1)
            params = {n: t.numpy() for n, t in work.taken(model).items()}
        meta = {**facts, FLMetaKey.NUM_STEPS_CURRENT_ROUND: facts["num-examples"]}
        flare.send(flare.FLModel(params=params, meta=meta))


if __name__ == "__main__":
    main()
