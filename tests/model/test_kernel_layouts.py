"""Kernels that the code hands views, transposes and columns: which honour strides, which do not.

Each is held against the same call on copies that lie row by row. docs/numerics.md lists the calls.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def made(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def column(*shape: int, seed: int) -> Tensor:
    """Return every other column of a matrix twice as wide."""
    return made(*shape[:-1], 2 * shape[-1], seed=seed)[..., ::2]


def half(*shape: int, seed: int) -> Tensor:
    """Return the right half of a matrix twice as wide."""
    return made(*shape[:-1], 2 * shape[-1], seed=seed).chunk(2, dim=-1)[1]


def turned(*shape: int, seed: int) -> Tensor:
    """Return a transpose."""
    return made(*shape[:-2], shape[-1], shape[-2], seed=seed).mT


LAYOUTS = (column, half, turned)


def softmax_backward(g: Tensor, p: Tensor) -> Tensor:
    p = torch.softmax(p, -1)
    return torch.ops.aten._softmax_backward_data(g, p, -1, g.dtype)


def into_half(call: Callable[[Tensor], object], like: Tensor) -> Tensor:
    """Return what a call writes into the right half of a wider matrix."""
    wide = torch.zeros(*like.shape[:-1], 2 * like.shape[-1])
    call(wide.chunk(2, dim=-1)[1])
    assert not wide.chunk(2, dim=-1)[0].any()
    return wide.chunk(2, dim=-1)[1].clone()


def silu_backward(g: Tensor, x: Tensor) -> Tensor:
    return into_half(
        lambda out: torch.ops.aten.silu_backward.grad_input(g * x, x, grad_input=out), x
    )


def clipped(g: Tensor, x: Tensor) -> Tensor:
    leaves = [nn.Parameter(torch.zeros(t.shape)) for t in (g, x)]
    for leaf, slope in zip(leaves, (g, x), strict=True):
        leaf.grad = slope.clone(memory_format=torch.preserve_format)
    norm = nn.utils.clip_grad_norm_(leaves, 0.5)
    return torch.cat([norm[None], *(p.grad.flatten() for p in leaves if p.grad is not None)])


def accumulated(g: Tensor, x: Tensor) -> Tensor:
    """Return a gradient that autograd adds into memory that lies row by row."""
    leaf = nn.Parameter(torch.zeros(g.shape))
    leaf.grad = torch.ones(g.shape)
    (leaf * g + leaf * x).backward(torch.ones(g.shape))  # type: ignore[no-untyped-call]
    return leaf.grad


def foreach_added(g: Tensor, x: Tensor) -> Tensor:
    held = [g.clone()]
    torch.ops.aten._foreach_add_.List(held, [x], alpha=3.0)
    return held[0]


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul into a view": lambda g, x: into_half(lambda out: torch.mul(g, x, out=out), x),
    "addcmul into a view": lambda g, x: into_half(
        lambda out: torch.addcmul(g * x, g, x, out=out), x
    ),
    "silu_backward into a view": silu_backward,
    "addmm in place": lambda g, x: torch.ones(g.shape[0], g.shape[0]).addmm_(g, x.t()),
    "addcmul in place": lambda g, x: torch.ones(g.shape).addcmul_(g, x, value=-1),
    "baddbmm": lambda g, x: torch.baddbmm(
        torch.ones(g.shape[0], g.shape[0]), g[None], x[None].mT, alpha=0.5
    ),
    "bmm": lambda g, x: torch.bmm(g[None], x[None].mT),
    "vecdot": torch.linalg.vecdot,
    "softmax_backward": softmax_backward,
    "copy into a view": lambda g, x: into_half(lambda out: out.copy_(g + x), x),
    "foreach add in place": foreach_added,
    "singular values": lambda g, x: torch.linalg.svdvals(g + x),
    "geqrf": lambda g, x: torch.geqrf(g + x)[0],
    "ormqr": lambda g, x: torch.ormqr(*torch.geqrf(g), x),
    "flatten dense tensors": lambda g, x: torch.ops.aten.flatten_dense_tensors([g, x]),
    "clipping by the norm": clipped,
    "accumulation by autograd": accumulated,
    "attention of the library": lambda g, x: scaled_dot_product_attention(
        g[None, None], x[None, None], g[None, None], is_causal=True
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_that_is_handed_views_reads_them_as_they_are_meant(
    name: str, layout: Callable[..., Tensor]
) -> None:
    g, x = layout(6, 10, seed=1), layout(6, 10, seed=2)
    assert not g.is_contiguous()
    found, wanted = CALLS[name](g, x), CALLS[name](g.contiguous(), x.contiguous())
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
