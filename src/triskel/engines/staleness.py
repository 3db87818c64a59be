"""An update that began from an older model, as one of the open round.

    τ rounds late, s(τ) = 1 / sqrt(1 + τ):    θᵢ counts as    θ + s(τ) (θᵢ - θ_sent)

θ is what the open round sends, θ_sent what the client was sent, as it had it once it was read. The
mean of such updates, weighted by n, is θ + Σ nᵢ s(τᵢ) Δᵢ / Σ nᵢ with Δᵢ = θᵢ - θ_sent: the server's
step of FedBuff (Nguyen et al. 2022, arXiv:2106.06639, Algorithm 1), by examples.
"""

import math
from dataclasses import replace

from torch import Tensor

from triskel.types import Message, Section
from triskel.wire.adapters import number, same_round, sections_of


def scaled(late: int) -> float:
    """Return s(τ), how much of a change counts that is so many rounds late.

    >>> scaled(0), scaled(3)
    (1.0, 0.5)
    """
    return 1 / math.sqrt(1 + late)


def restated(update: Message, sent: Message, now: Message, late: int) -> Message:
    """Return an update as one of the open round; one that is not late is returned as it is.

    Args:
        update: What a client sent.
        sent: The task that it answers, as it arrived at the client.
        now: The task of the open round, of the same sections.
        late: How many rounds lie between the two.

    Raises:
        MessageError: It answers another task, or a name, shape or scale is not that of its task.
    """
    same_round(update, int(number(sent.facts, "round", least=1)))
    if not late:
        return update
    found = sections_of(update, sent.sections, kind="update")
    sections = {
        name: _moved(section, sent.sections[name], now.sections[name], scaled(late))
        for name, section in found.items()
    }
    return replace(update, sections=sections, facts={**update.facts, "round": now.facts["round"]})


def _moved(section: Section, sent: Section, now: Section, share: float) -> Section:
    """Return what a section of the open round becomes by a share of a change."""

    def at(name: str, tensor: Tensor) -> Tensor:
        change = tensor.double() - sent.tensors[name].double()
        return (now.tensors[name].double() + share * change).to(tensor.dtype)

    return replace(section, tensors={n: at(n, t) for n, t in section.tensors.items()})
