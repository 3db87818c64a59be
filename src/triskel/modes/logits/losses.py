"""How far a student is from its teacher."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from triskel.modes.logits.knowledge import Knowledge, outcomes
from triskel.numerics.tensors import wide


def distil_loss(
    student: Float[Tensor, "scored classes"], teacher: Knowledge, temperature: float
) -> Float[Tensor, ""]:
    """Return τ² KL(teacher ‖ student), both softened by τ, in nats, mean over positions.

    τ² keeps gradients the same size as τ changes. The gradient is zero where they agree. What the
    student's head is padded with beyond the teacher's vocabulary takes no part.
    """
    scaled = student[:, : teacher.vocabulary].to(wide(student.dtype)) / temperature
    if teacher.ids is None or teacher.tail is None:
        logp, sent = torch.log_softmax(scaled, dim=-1), teacher.values
    else:
        logp = outcomes(scaled, teacher.ids.to(scaled.device).long())
        sent = torch.cat([teacher.values, teacher.tail[:, None]], dim=1)
    target = torch.log_softmax(sent.to(logp.device) / temperature, dim=-1)
    rows = kl_div(logp, target, reduction="none", log_target=True).sum(-1)
    return temperature**2 * rows.mean()
