"""Prediction exchange, restated: FedMD (Li and Wang 2019, arXiv:1910.03581, Algorithm 1).

Distillation is that of Hinton et al. 2015 (arXiv:1503.02531, section 2). τ log p travels: of every
class, or of the k likeliest tokens and of all others together, which a receiver spreads evenly.
"""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917 - plain programs

import torch
from restated import common, knowledge, scores, wire
from torch.nn.functional import cross_entropy


def distil(net, own, teacher, job, data, order, who, mix, words):
    """Learn from the teacher on public texts, and with 1 - mix keep to private labels."""
    (client, round_), public, tau = who, data["public"], job["logits"]["temperature"]
    sizes = [int(s.sum()) for s in public["scored"]] or [1] * len(public["ids"])
    values, ids = (x.split(sizes) if x is not None else None for x in teacher)
    adam, losses = common.Adam(job), []
    for step, rows in enumerate(order[client, round_, "distil"]):
        common.drop(net, job, "round", round_, "distil", client, step)
        f = common.predict(net, own, public, rows)[0][:, : words or None]
        some = torch.cat([ids[i] for i in rows]) if ids else None
        q = knowledge.named(torch.log_softmax(f / tau, 1), some)
        p = torch.log_softmax(torch.cat([values[i] for i in rows]) / tau, 1)
        loss = mix * tau**2 * (p.exp() * (p - q)).sum(1).mean()
        loss.backward()
        slopes, value = common.slopes(net, own), loss.item()
        if mix < 1:
            again = order[client, round_, "rehearse"][step]
            kept = cross_entropy(*common.predict(net, own, data["train"][client], again))
            ((1 - mix) * kept).backward()
            slopes = {n: slopes[n] + g for n, g in common.slopes(net, own).items()}
            value += (1 - mix) * kept.item()
        own = adam.step(own, slopes, common.rate(job, round_))
        losses.append(value)
    return own, losses


def play(job, model, start, data, order, cohorts, words):
    """Play all rounds; `words` is how many tokens the tokenizer knows, 0 for a classifier."""
    net, wire_, options = common.adapted(model, job), job["wire"], job["logits"]
    student, mine, public = dict(start), {}, data["public"]
    steps, sent, reached = {}, {}, []
    for round_ in range(1, job["rounds"] + 1):
        asks = []
        for client in cohorts[round_]:
            own, adam, losses = mine.get(client, start), common.Adam(job), []
            for step, rows in enumerate(order[client, round_, "train"]):
                path, texts = ("round", round_, "train", client, step), data["train"][client]
                own, loss = common.learn(net, own, adam, job, texts, rows, path)
                losses.append(loss)
            mine[client], steps[client, round_, "train"] = own, losses
            sent[client, round_] = wire.of_logits(job, public, net.config.num_labels)
            net.eval()
            with torch.no_grad():
                z, _ = common.predict(net, own, public, range(len(public["ids"])))
            asks.append(knowledge.carried(*knowledge.told(z, job, words), wire_["up"]))
        teacher = knowledge.agreed(asks, job, words)
        heard = knowledge.carried(*teacher, wire_["down"])
        for client in cohorts[round_]:
            who, own, mix = (client, round_), mine[client], options["mix"]
            found = distil(net, own, heard, job, data, order, who, mix, words)
            mine[client], steps[client, round_, "distil"] = found
        if options["student"]:
            who = ("server", round_)
            found = distil(net, student, teacher, job, data, order, who, 1, words)
            student, steps["server", round_, "distil"] = found
        models = {c: mine.get(c, start) for c in data["test"]}
        pooled = student if options["student"] else None
        reached.append(scores.scored(net, models, data["test"], pooled))
    return {**mine, **({"": student} if options["student"] else {})}, steps, sent, reached
