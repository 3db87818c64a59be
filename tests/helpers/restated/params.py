"""Parameter exchange, restated: FedAvg on adapters (McMahan et al. 2017, Algorithm 1).

With a server's momentum it is FedAvgM (Hsu et al. 2019, arXiv:1909.06335, section 4.3).
"""

# ruff: noqa: ANN001, ANN201 - plain programs

from restated import common, scores, wire


def play(job, model, start, data, order, cohorts):
    """Play all rounds, and return models, losses of steps, payload bytes and scores.

    `order` says which texts go together in each step of a client, round and phase; `cohorts` who
    takes part in a round.
    """
    net, codecs, server = common.adapted(model, job), job["wire"], job["params"]
    theta, velocity = dict(start), {n: 0 * t for n, t in start.items()}
    steps, sent, reached = {}, {}, []
    for round_ in range(1, job["rounds"] + 1):
        came, n = {}, {}
        for client in cohorts[round_]:
            texts, adam, losses = data["train"][client], common.Adam(job), []
            own = {name: wire.travel(t, codecs["down"]) for name, t in theta.items()}
            for step, rows in enumerate(order[client, round_, "train"]):
                path = ("round", round_, "train", client, step)
                own, loss = common.learn(net, own, adam, job, texts, rows, path)
                losses.append(loss)
            came[client] = {name: wire.travel(t, codecs["up"]) for name, t in own.items()}
            n[client], steps[client, round_, "train"] = len(texts["ids"]), losses
            sent[client, round_] = wire.of_params(theta)
        for name, t in theta.items():
            mean = sum(n[c] * came[c][name] for c in came) / sum(n.values())
            velocity[name] = server["server_momentum"] * velocity[name] + (mean - t)
            theta[name] = t + server["server_lr"] * velocity[name]
        each = dict.fromkeys(data["test"], theta)
        reached.append(scores.scored(net, each, data["test"], theta))
    return {"": theta}, steps, sent, reached
