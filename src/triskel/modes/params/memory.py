"""What a client keeps between rounds, and what its next round begins with."""

from collections.abc import Mapping

from torch import Tensor

from triskel.model.side_factors import is_side
from triskel.modes.params.control import Told
from triskel.modes.params.held import TOPIC, fact, named
from triskel.modes.params.local import MEAN, OWN, SQUARE, Begun, Trained
from triskel.modes.params.sharing import Sharing
from triskel.training.loop import StepId
from triskel.types import ClientState, Fact, Facts, Tensors

STEPS = "steps"
"""The fact that says how many steps the kept moments are of."""


def begun(
    share: Sharing,
    received: Tensors,
    kept: ClientState,
    where: StepId,
    *,
    told: Told,
    left: int,
) -> Begun:
    """Return what a client has when its round begins.

    Args:
        share: What trains and travels.
        received: θ, and S.
        kept: What the client kept of its last round.
        where: Names client and round.
        told: What else came.
        left: Rounds after this one.
    """
    own, tensors = kept.groups.get(OWN, {}), dict(received)
    tensors |= {n: own[n] for n in received if n in own and share.part(n) in share.stay}
    names = [n for n in received if not is_side(n)]
    form = share.form(where.client, names, where.round)
    if form.rank and share.beside == "rest":
        tensors = form.parted(tensors)
    steps = kept.facts.get(STEPS)
    return Begun(
        tensors=tensors,
        form=form,
        kept=kept.groups,
        steps=steps if isinstance(steps, int) else 0,
        told=told,
        left=left,
    )


def after(
    share: Sharing,
    received: Tensors,
    task: Facts,
    trained: Trained,
    where: StepId,
) -> ClientState:
    """Return what a client keeps of its round.

    Args:
        share: What trains and travels.
        received: θ, and S.
        task: The facts of the task.
        trained: What the client has.
        where: Names client and round.
    """
    groups: dict[str, Tensors] = {n: _copied(g) for n, g in trained.kept.items()}
    facts = dict[str, Fact]()
    if share.stay:
        groups[OWN] = _copied(trained.tensors)
    if share.options.moments == "kept":
        groups |= {MEAN: _copied(trained.moments.mean), SQUARE: _copied(trained.moments.square)}
        facts[STEPS] = max(trained.moments.steps.values(), default=0)
    if share.frozen:
        groups |= _held(share, received, task, where, facts)
    return ClientState(groups={n: g for n, g in groups.items() if g}, facts=facts)


def _held(
    share: Sharing, received: Tensors, task: Facts, where: StepId, facts: dict[str, Fact]
) -> dict[str, Tensors]:
    """Return the parts that did not train and that the seed does not make; say of which round."""
    trained = set(share.trained(received, where.round))
    still = {n: t for n, t in received.items() if n not in trained and not is_side(n)}
    since = {share.part(n): named(task).get(share.part(n), where.round - 1) for n in still}
    facts |= {fact(part): round_ for part, round_ in since.items() if round_}
    return {TOPIC: _copied({n: t for n, t in still.items() if since[share.part(n)]})}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.detach().cpu().clone() for n, t in tensors.items()}
