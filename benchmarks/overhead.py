"""How fast is a `params` round beside a plain transformers + peft loop on the same batches?

Both train the same LoRA on the same padded batches with the same AdamW, eager attention, a base in
the dtype that `model.dtype = "auto"` takes and float32 adapters. The plain loop is what one would
write by hand: a model call, a loss, a step. The round is the whole of ours: messages packed and
unpacked, metering, progress events.
"""

from typing import Any

import measure
import peft
import torch
import transformers

from triskel.aggregate.mean import Mean
from triskel.config.job import Job
from triskel.config.read import load
from triskel.data.assets import resolve
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import LocalResources, prepare
from triskel.model.load import dtype_of
from triskel.modes.params.mode import Params
from triskel.training.loop import StepId
from triskel.types import Batch
from triskel.wire.ledger import Ledger


def quiet(_: object) -> None:
    """Tell nobody."""


def ours(resources: LocalResources, client: str, ledger: Ledger | None = None) -> Any:
    """Return one round of `params` with one client, as a call."""
    body, engine = resources.body(), LocalEngine(resources.job)
    mode = Params(aggregate=Mean(), initial=body.initial, layout=body.layout)

    def work() -> None:
        engine.round(
            mode,
            mode.start(),
            [client],
            worker=lambda name: resources.worker(name, quiet),
            client_states={},
            keep=lambda client, state: None,  # noqa: ARG005 - nothing is kept
            ledger=ledger or Ledger(),
            watch=quiet,
        )

    return work


def adapted(job: Job, classes: int, *, dtype: torch.dtype, attention: str) -> Any:
    """Return the job's model with a PEFT adapter, as a plain loop has it."""
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        resolve(job.model.path), dtype=dtype, attn_implementation=attention, num_labels=classes
    )
    base.config.pad_token_id = base.config.eos_token_id
    config = peft.LoraConfig(
        r=job.adapter.rank,
        lora_alpha=int(job.adapter.alpha),
        target_modules=["q_proj", "v_proj"],
        task_type=peft.TaskType.SEQ_CLS,
    )
    return peft.get_peft_model(base, config)


def plain(job: Job, batches: list[Batch], classes: int) -> Any:
    """Return one epoch of a loop with every trick a plain loop can have, as a call."""
    model = adapted(job, classes, dtype=dtype_of(job.model), attention="eager")
    padding = model.config.pad_token_id
    inputs = [
        {
            "input_ids": b.ids.masked_fill(
                torch.arange(b.ids.shape[1])[None] >= b.lengths[:, None], padding
            ),
            "attention_mask": (torch.arange(b.ids.shape[1])[None] < b.lengths[:, None]).long(),
            "labels": b.targets,
        }
        for b in batches
    ]

    def work() -> None:
        model.train()
        adam = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=job.train.lr, fused=True
        )
        for one in inputs:
            model(**one).loss.backward()
            adam.step()
            adam.zero_grad()

    return work


def main() -> None:
    """Answer the question."""
    options = measure.arguments(__doc__ or "")
    options.add_argument("--client", default="films")
    options.add_argument("--texts", type=int, default=0, help="training texts; 0 for the default")
    options.add_argument("--set", action="append", default=[], help="section.key=value")
    chosen = options.parse_args()
    texts = chosen.texts or (64 if chosen.quick else 192)
    sets = ["adapter.blocks=all", f"clients.examples={texts}", f"seed={chosen.seed}", *chosen.set]
    job = load(None, sets)
    resources = prepare(job, quiet)
    worker = resources.worker(chosen.client, quiet)
    batches = list(worker.batches(StepId(chosen.client, 1), job.train.epochs))
    tokens = sum(int(b.lengths.sum()) for b in batches)
    works = {
        "ours": ours(resources, chosen.client),
        "plain": plain(job, batches, len(resources.federation.classes)),
    }
    times = measure.in_turn(works, times=3 if chosen.quick else 9)
    figures = {
        "against_plain": measure.ratios(times["plain"], times["ours"]),
        "ours_tokens_per_s": [tokens / t for t in times["ours"]],
        "plain_tokens_per_s": [tokens / t for t in times["plain"]],
    }
    measure.report(
        "overhead", figures, seed=chosen.seed, out=chosen.out, tokens=tokens, texts=texts
    )


if __name__ == "__main__":
    main()
