"""Peer: the loop people write by hand with transformers and peft.

    python plain.py WORK OUT                  # the model is kept between clients
    python plain.py WORK OUT --reload         # every client loads it anew
    python plain.py WORK OUT --trainer        # kept, and trained by Hugging Face's Trainer
    python plain.py WORK OUT --many CLIENTS   # clients that train nothing

torch's own choice of threads: one a core. No messages, no process beside this one.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import work
from safetensors.torch import load_file


def trainer_train(model: Any, done: work.Work, client: str, round_: int) -> dict[str, float]:
    """Train one client for one epoch with Trainer, told to do the same as `work.train`."""
    import tempfile  # noqa: PLC0415 - the plain loop needs none of this

    import transformers  # noqa: PLC0415

    start = time.perf_counter()
    rows = done.ordered(client, round_)
    examples = [{"i": i} for i in range(len(rows["ids"]))]

    def collate(chosen: list[dict[str, int]]) -> dict[str, Any]:
        indices = [one["i"] for one in chosen]
        return done.batch([rows["ids"][i] for i in indices], [rows["labels"][i] for i in indices])

    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=done.facts["batch"],
            train_sampling_strategy="sequential",  # the order is that of the work
            learning_rate=done.facts["lr"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            optim="adamw_torch_fused",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = transformers.Trainer(
            model=model, args=options, train_dataset=examples, data_collator=collate
        )
        loss = trainer.train().training_loss
    return {
        "loss": loss,
        "num-examples": len(examples),
        "seconds": time.perf_counter() - start,
    }


def federated(done: work.Work, out: Path, *, reload: bool, trainer: bool) -> None:
    """Run the rounds."""
    model = None if reload else work.model_of(done)
    adapter = load_file(done.start)
    fit = trainer_train if trainer else work.train
    rounds: list[dict[str, Any]] = []
    for round_ in range(1, done.facts["rounds"] + 1):
        start = time.perf_counter()
        updates, facts = [], []
        for client in done.clients():
            used = model or work.model_of(done)
            work.install(used, adapter)
            facts.append(fit(used, done, client, round_))
            updates.append((work.taken(used), facts[-1]["num-examples"]))
        adapter = work.mean(updates)
        rounds.append(
            {
                "wall": time.perf_counter() - start,
                "train": [one["seconds"] for one in facts],
                "loss": [one["loss"] for one in facts],
            }
        )
        work.progress(out)
    work.finish(out, rounds, adapter)


def many(start: Path, out: Path, clients: int, count: int) -> None:
    """Average adapters of clients that send back what they were sent."""
    adapter = load_file(start)
    rounds: list[dict[str, Any]] = []
    for _ in range(count):
        begun = time.perf_counter()
        total = {n: t * 0 for n, t in adapter.items()}
        for _client in range(clients):
            update = {n: t.clone() for n, t in adapter.items()}
            for n, t in update.items():
                total[n] += t
        adapter = {n: t / clients for n, t in total.items()}
        rounds.append({"wall": time.perf_counter() - begun})
        work.progress(out)
    work.finish(out, rounds, adapter)


def main() -> None:
    """Run as asked."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("work", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--reload", action="store_true")
    options.add_argument("--trainer", action="store_true")
    options.add_argument("--many", type=int)
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    if chosen.many:
        many(chosen.work / work.ADAPTER, chosen.out, chosen.many, chosen.rounds)
    else:
        done = work.read(chosen.work)
        federated(done, chosen.out, reload=chosen.reload, trainer=chosen.trainer)


if __name__ == "__main__":
    main()
