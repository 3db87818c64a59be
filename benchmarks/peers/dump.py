"""Writes the work once, from Triskel's own reading of the texts, so that all peers train alike.

Everything that could differ is fixed here: token ids, their order in each round, which examples
share a batch, the adapter before round 1, and the test texts.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ours import job_of, quiet
from safetensors.torch import save_file
from work import ADAPTER

from triskel.data.assets import resolve
from triskel.experiment.resources import prepare
from triskel.model.peft_folder import padding_token, to_peft
from triskel.training.loop import StepId
from triskel.types import Examples


def plain(examples: Examples) -> dict[str, list[Any]]:
    """Return examples as lists of numbers."""
    return {"ids": [row.tolist() for row in examples.ids], "labels": list(examples.labels)}


def main() -> None:
    """Write `work.json` and the common start."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model")
    options.add_argument("folder", type=Path)
    chosen = options.parse_args()
    job = job_of(chosen.model)
    resources = prepare(job, quiet)
    body = resources.body()
    order: list[dict[str, list[int]]] = []
    for round_ in range(1, job.rounds + 1):
        plans = {
            c: resources.worker(c, quiet).plan(
                resources.tokens.share(c).train, StepId(c, round_), 1
            )
            for c in resources.active()
        }
        for batches in plans.values():  # so that consecutive runs of `batch` are the batches
            if any(len(rows) != job.train.batch for rows in batches):
                raise SystemExit("clients.examples must be a multiple of train.batch")
        order.append({c: [i for rows in batches for i in rows] for c, batches in plans.items()})
    tests = [resources.tokens.share(c).test for c in resources.clients]
    facts = {
        "model": str(Path(resolve(job.model.path)).resolve()),
        "classes": len(resources.federation.classes),
        "pad": body.tokenizer.convert_tokens_to_ids(padding_token(body.tokenizer)),
        "rounds": job.rounds,
        "batch": job.train.batch,
        "lr": job.train.lr,
        "dtype": str(body.dtype).removeprefix("torch."),
    }
    text = {
        "facts": facts,
        "train": {c: plain(resources.tokens.share(c).train) for c in resources.active()},
        "order": order,
        "test": {
            "ids": [row.tolist() for test in tests for row in test.ids],
            "labels": [label for test in tests for label in test.labels],
        },
    }
    chosen.folder.mkdir(parents=True, exist_ok=True)
    (chosen.folder / "work.json").write_text(json.dumps(text))
    start = {to_peft(n): t.detach().clone() for n, t in body.initial.items()}
    save_file(start, chosen.folder / ADAPTER)


if __name__ == "__main__":
    main()
