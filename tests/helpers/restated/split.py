"""Split learning, restated: Gupta and Raskar 2018 (arXiv:1810.06060), Algorithm 1 and section 3.4.

Nothing is cut here: `gates` runs the whole model. In a wave each client steps on its own tensors,
and the trunk once, along the mean of the clients' gradients weighted by their labels.
"""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917 - plain programs

from types import SimpleNamespace

from restated import common, gates, scores, wire


def labels(texts, rows):
    return sum(int(texts["scored"][i].sum()) for i in rows) if texts["scored"] else len(rows)


def wave(net, phi, now, data, job, round_, step):
    """One batch of each client; return the trunk's gradient and the losses."""
    texts, losses, trunk = data["train"], {}, {}
    counts = {c: labels(texts[c], one.plan[step]) for c, one in now.items()}
    for client, one in now.items():
        beside = [c for c in now if now[c].cut == one.cut]  # short texts all run together
        lengths = {c: [len(texts[c]["ids"][i]) for i in now[c].plan[step]] for c in beside}
        before = sum(len(lengths[c]) for c in beside[: beside.index(client)])
        joint = sum(map(len, lengths.values())), max(map(max, lengths.values())), before
        streams = [(round_, phase, client, step) for phase in ("train", "top")]
        streams.insert(1, (round_, "trunk", *[f"{c}:{step}" for c in beside]))
        batch, tensors = (texts[client], one.plan[step]), {**phi, **one.own}
        loss = gates.loss_of(net, tensors, job, batch, one.cut, streams, joint)
        loss.backward()
        slopes, losses[client] = common.slopes(net, phi), loss.item()
        for name in phi.keys() - one.own.keys():
            part = counts[client] / sum(counts.values()) * slopes[name]
            trunk[name] = trunk[name] + part if name in trunk else part
        mine = {name: slopes[name] for name in one.own}
        one.own = one.adam.step(one.own, mine, common.rate(job, round_))
    return trunk, losses


def opened(c, phi, block, job, plan):
    """What a client begins a round with: all that the trunk [low, high) does not hold."""
    low, high = job["clients"]["each"].get(c, job["split"])["cut"]
    if job["split"]["labels"] == "shared":
        high = max(block.values()) + 1
    mine = {x: wire.travel(t, job["wire"]["down"]) for x, t in phi.items()
            if not low <= block[x] < high}  # fmt: skip
    return SimpleNamespace(own=mine, cut=(low, high), adam=common.Adam(job), plan=plan)


def play(job, model, start, data, order, cohorts):
    """Play all rounds; the trunk's moments live through all of them, a client's through one."""
    net, phi, server = common.adapted(model, job), dict(start), common.Adam(job)
    gates.seed_by_hand(net, job)
    prefix, depth = f"{common.BLOCKS[model.config.model_type]}.", model.config.num_hidden_layers
    block = {x: int(x.removeprefix(prefix).split(".")[0]) if prefix in x else depth for x in phi}
    steps, sent, reached = {}, {}, []
    for round_ in range(1, job["rounds"] + 1):
        cohort, came = cohorts[round_], {}
        size = job["split"]["wave"] or len(cohort)
        for some in [cohort[i : i + size] for i in range(0, len(cohort), size)]:
            plans = {c: order[c, round_, "train"] for c in some}
            crew = {c: opened(c, phi, block, job, plans[c]) for c in some}
            for step in range(max(map(len, plans.values()))):
                now = {c: one for c, one in crew.items() if step < len(plans[c])}
                trunk, losses = wave(net, phi, now, data, job, round_, step)
                phi = server.step(phi, trunk, common.rate(job, round_))
                for c, loss in losses.items():
                    steps.setdefault((c, round_, "train"), []).append(loss)
            for c, one in crew.items():
                came[c] = {x: wire.travel(t, job["wire"]["up"]) for x, t in one.own.items()}
                texts, first = data["train"][c], min(block.values())
                sent[c, round_] = wire.of_split(job, texts, one.own, one.cut, first, net.config)
        n = {c: len(data["train"][c]["ids"]) for c in cohort}
        for x, t in phi.items():  # who does not hold a block counts with the server's copy
            phi[x] = sum(n[c] * came[c].get(x, t) for c in cohort) / sum(n.values())
        each = dict.fromkeys(data["test"], phi)
        reached.append(scores.scored(net, each, data["test"], phi))
    return {"": phi}, steps, sent, reached
