"""Normal numbers by seed and place: the same bits on every machine, device and number of threads.

    bits    Philox4x64-10 (Salmon et al. 2011, SC'11) with key (seed, 0) and counter (b, 0, 0, 0)
            gives block b, which is four words of 64 bits; blocks are counted from 1
    place   number i of a seed is lane i mod 4, of 16 bits from the lowest on, of word i // 4 mod 4
            of block 1 + i // 16
    value   its high byte h and low byte l give the integer Z = 4 T(h) + 3 T(l), and z = Z / 2^14

T(128 + j) = Q[j] and T(127 - j) = -Q[j], with the table below: the root mean square of a normal
number in each of 256 equally likely ranges, so that z has mean 0, variance 1 + 2.1e-10, kurtosis
2.985 and is at most 4.18. There is no logarithm, root or cosine that a library could round in its
own way.

On a CPU the words are NumPy's, elsewhere they are made by integers of torch; `docs/numerics.md`.
"""

import functools

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

UNIT = 2.0**-14
"""What one step of Z is in z."""
LARGEST = 68_425
"""The largest |Z|."""
BLOCK = 16
"""Numbers of a block."""
Q = (
    19, 49, 81, 113, 145, 177, 209, 241, 273, 305, 338, 370, 402, 435, 467, 499, 532, 564, 597, 630,
    662, 695, 728, 761, 794, 827, 860, 893, 927, 960, 994, 1027, 1061, 1095, 1129, 1163, 1197, 1232,
    1266, 1301, 1335, 1370, 1406, 1441, 1476, 1512, 1548, 1584, 1620, 1656, 1693, 1729, 1766, 1804,
    1841, 1879, 1917, 1955, 1993, 2032, 2071, 2111, 2150, 2190, 2230, 2271, 2312, 2353, 2395, 2437,
    2480, 2523, 2566, 2610, 2654, 2699, 2744, 2790, 2836, 2883, 2931, 2979, 3028, 3077, 3128, 3179,
    3230, 3283, 3336, 3391, 3446, 3502, 3560, 3618, 3678, 3739, 3801, 3864, 3929, 3996, 4065, 4134,
    4207, 4281, 4358, 4436, 4518, 4603, 4690, 4781, 4877, 4975, 5080, 5190, 5305, 5428, 5559, 5699,
    5851, 6016, 6198, 6402, 6634, 6906, 7235, 7661, 8282, 9775,
)  # fmt: skip
"""T above its middle."""
FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10
LOW32, ALL64 = (1 << 32) - 1, (1 << 64) - 1


def normals(
    seed: int, start: int, count: int, device: torch.device | None = None
) -> Float64[Tensor, " count"]:
    """Return the integers Z of numbers [start, start + count) of a seed, as float64.

    Args:
        seed: From 0 to 2^63 - 1.
        start: The first number, from 0 on.
        count: How many.
        device: Where they are made and lie; the CPU where none is named.
    """
    device = device or torch.device("cpu")
    first, skipped = divmod(start, BLOCK)
    blocks = -(-(skipped + count) // BLOCK)
    if device.type == "cpu":
        source = np.random.Philox(key=seed, counter=first)  # which counts on before a block
        words = source.random_raw(4 * blocks).astype("<u8", copy=False)
        lanes = words.view("<u2")[skipped : skipped + count]
        return torch.from_numpy(np.take(_table(), lanes))
    lanes = _lanes(_words(seed, first + 1, blocks, device))[skipped : skipped + count]
    return _table_on(device)[lanes]


def _words(
    seed: int, first: int, blocks: int, device: torch.device
) -> tuple[Int64[Tensor, " blocks"], ...]:
    """Return the four words of each block, in two's complement."""
    c0 = torch.arange(first, first + blocks, device=device)
    c1, c2, c3 = (torch.zeros_like(c0) for _ in range(3))
    k0, k1 = seed, 0
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = _product(c0, FACTORS[0]), _product(c2, FACTORS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ _signed(k0), low1, high0 ^ c3 ^ _signed(k1), low0
        k0, k1 = (k0 + WEYL[0]) & ALL64, (k1 + WEYL[1]) & ALL64
    return c0, c1, c2, c3


def _product(x: Int64[Tensor, " n"], factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of the 128 bits of x times a factor, both unsigned."""
    low, high, f_low, f_high = x & LOW32, (x >> 32) & LOW32, factor & LOW32, factor >> 32
    ll, lh, hl = low * f_low, low * f_high, high * f_low  # each modulo 2^64
    middle = ((ll >> 32) & LOW32) + (lh & LOW32) + (hl & LOW32)
    carried = ((lh >> 32) & LOW32) + ((hl >> 32) & LOW32) + (middle >> 32)
    return high * f_high + carried, x * _signed(factor)


def _signed(word: int) -> int:
    """Return an unsigned word as the integer of torch that has its bits."""
    return word - (1 << 64) if word >> 63 else word


def _lanes(words: tuple[Tensor, ...]) -> Int64[Tensor, " numbers"]:
    """Return the 16 lanes of each block in their order."""
    return torch.stack([(w >> shift) & 0xFFFF for w in words for shift in (0, 16, 32, 48)], 1).view(
        -1
    )


@functools.cache
def _table() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return Z of every pair of bytes."""
    upper = np.array(Q, np.float64)
    t = np.concatenate([-upper[::-1], upper])
    return (4 * t[:, None] + 3 * t[None, :]).reshape(-1)


@functools.cache
def _table_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_table()).to(device)
