"""What models score, restated from docs/ledger.md."""

# ruff: noqa: ANN001, ANN201 - plain programs

import math

import torch
from restated import common
from torch.nn.functional import cross_entropy


def answers(net, own, texts):
    """For each prediction the guess, the truth and the loss."""
    net.eval()
    with torch.no_grad():
        logits, truth = common.predict(net, own, texts, range(len(texts["ids"])))
    nats = cross_entropy(logits, truth, reduction="none")
    return list(zip(logits.argmax(-1).tolist(), truth.tolist(), nats.tolist(), strict=True))


def figures(said, classes):
    """Accuracy and mean loss; macro F1 of a classifier, perplexity of a language model."""
    loss = math.fsum(nats for *_, nats in said) / len(said)
    found = {"accuracy": sum(g == t for g, t, _ in said) / len(said), "loss": loss}
    if not classes:
        return {**found, "perplexity": math.exp(loss)}
    hits = [sum(g == t == c for g, t, _ in said) for c in range(classes)]
    seen = [sum((g == c) + (t == c) for g, t, _ in said) for c in range(classes)]
    each = [2 * hit / all_ for hit, all_ in zip(hits, seen, strict=True) if all_]
    return {**found, "macro_f1": sum(each) / len(each)}


def scored(net, models, tests, pooled):
    """Figures of each client's texts by its own model; under "" of all by one, or by their own."""
    classes = 0 if next(iter(tests.values()))["scored"] else net.config.num_labels
    each = {c: answers(net, models[c], tests[c]) for c in tests}
    whole = each if pooled is None else {c: answers(net, pooled, tests[c]) for c in tests}
    together = [one for said in whole.values() for one in said]
    return {"": figures(together, classes), **{c: figures(s, classes) for c, s in each.items()}}
