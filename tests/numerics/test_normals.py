"""Normal numbers are those that are written down: by published vectors, and by plain integers."""

import hashlib
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
import torch

from triskel.numerics import normals as module
from triskel.numerics.normals import BLOCK, LARGEST, UNIT, Q, normals

CPU = torch.device("cpu")
WORD = (1 << 64) - 1
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0),
     (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    ((WORD,) * 4, (WORD,) * 2,
     (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)),
    ((0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
     (0x452821E638D01377, 0xBE5466CF34E90C6C),
     (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6)),
]  # fmt: skip
"""Counter, key and words of Random123's `kat_vectors`, philox4x64 with 10 rounds."""


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """One block, as the paper has it, in whole numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & WORD, (p0 >> 64) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c0, c1, c2, c3


def plainly(seed: int, number: int) -> int:
    """Z of one number, as docs/numerics.md has it."""
    block, lane = divmod(number, 16)
    word = philox((1 + block, 0, 0, 0), (seed, 0))[lane // 4]
    high, low = divmod((word >> 16 * (lane % 4)) & 0xFFFF, 256)
    t = [-q for q in reversed(Q)] + list(Q)
    return 4 * t[high] + 3 * t[low]


def by_integers(seed: int, start: int, count: int) -> torch.Tensor:
    """Numbers as devices other than a CPU make them, made on one."""
    first, skipped = divmod(start, BLOCK)
    blocks = -(-(skipped + count) // BLOCK)
    lanes = module._lanes(module._words(seed, first + 1, blocks, CPU))
    return module._table_on(CPU)[lanes[skipped : skipped + count]]


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_plain_integers_give_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    assert philox(counter, key) == words


@pytest.mark.parametrize(
    ("seed", "start", "count"),
    [(0, 0, 40), (1, 5, 3), (2**31 - 1, 16, 16), (2**63 - 1, 31, 70), (77, 2**33 * 16 - 3, 20)],
)
def test_numbers_are_those_of_plain_integers_on_both_ways(
    seed: int, start: int, count: int
) -> None:
    wanted = [float(plainly(seed, start + i)) for i in range(count)]
    assert normals(seed, start, count).tolist() == wanted
    assert by_integers(seed, start, count).tolist() == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_numbers() -> None:
    found = normals(9, 3, 100_000, torch.device("cuda")).cpu()
    assert torch.equal(found, normals(9, 3, 100_000))


def test_the_first_numbers_are_pinned() -> None:
    """What a stranger can hold their own generator against."""
    assert normals(0, 0, 4).tolist() == [16023.0, -11869.0, 5293.0, -13967.0]
    table = module._table().astype("<i4").tobytes()
    wanted = "96a029d4d10b0ae1fdb401ff40e5d6f524870ee0fbff26667f3b1765a5e25acc"
    assert hashlib.sha256(table).hexdigest() == wanted
    many = normals(123, 0, 1 << 16).numpy().astype("<i4").tobytes()
    wanted = "08a3bb22a68e274e17d944bc3456134aa97691eb872d32a1d1b2c184a376ed8b"
    assert hashlib.sha256(many).hexdigest() == wanted


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = by_integers(5, 0, 50_000)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, normals(5, 0, 50_000))


def test_a_stretch_is_the_same_wherever_it_is_cut() -> None:
    whole = normals(4, 0, 100)
    for start in range(0, 100, 7):
        assert torch.equal(normals(4, start, 7)[: 100 - start], whole[start : start + 7])


def test_seeds_differ() -> None:
    firsts = {tuple(normals(seed, 0, 4).tolist()) for seed in range(500)}
    assert len(firsts) == 500


# --- the table --------------------------------------------------------------------------------


def moment(power: int) -> Fraction:
    """An exact moment of z."""
    t = [-q for q in reversed(Q)] + list(Q)
    values = [4 * high + 3 * low for high in t for low in t]
    return Fraction(sum(v**power for v in values), len(values) * 2 ** (14 * power))


def test_moments_are_the_stated_ones_exactly() -> None:
    assert moment(1) == moment(3) == 0
    assert 0 < moment(2) - 1 < Fraction(21, 10**11)
    assert float(moment(4)) == pytest.approx(2.98473, abs=1e-5)
    assert float(moment(6)) == pytest.approx(14.6429, abs=1e-4)
    assert (7 * Q[-1], pytest.approx(4.176, abs=1e-3)) == (LARGEST, LARGEST * UNIT)


def test_the_table_is_the_root_mean_square_of_256_equal_ranges() -> None:
    """By the library's normal distribution, which the generator itself never asks."""
    normal = NormalDist()
    edges = [normal.inv_cdf((128 + j) / 256) for j in range(128)]
    inner = [edge * normal.pdf(edge) for edge in edges] + [0.0]
    for j, q in enumerate(Q):
        wanted = 2**14 / 5 * (1 + 256 * (inner[j] - inner[j + 1])) ** 0.5
        assert abs(q - wanted) < 0.9, j


def test_the_distribution_is_normal_to_3e_4() -> None:
    z = np.sort(module._table()) * UNIT
    normal = NormalDist()
    below = np.array([normal.cdf(float(x)) for x in z[::16]])
    place = np.arange(0, len(z), 16) / len(z)
    assert np.abs(below - place).max() < 3.2e-4


def test_a_million_numbers_have_these_moments_and_no_memory() -> None:
    """Power: a mean off by 0.008, a variance by 0.012 or a correlation by 0.008 is found by 99.8 %.

    The bounds are five standard errors of a million numbers, so that chance fails some of the
    checks for one seed in 100,000; this seed is fixed, and does not.
    """
    count = 1 << 20
    z = normals(2024, 0, count) * UNIT
    error = count**-0.5
    assert abs(float(z.mean())) < 5 * error
    assert abs(float(z.square().mean()) - 1) < 5 * error * (2.98473 - 1) ** 0.5
    assert abs(float(z.pow(3).mean())) < 5 * error * 14.6429**0.5
    for lag in (1, 2, 3, 4, 8, 16, 64):
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 * error, lag
    other = normals(2025, 0, count) * UNIT
    assert abs(float((z * other).mean())) < 5 * error
    assert abs(float((z.square() * other.square()).mean()) - 1) < 5 * error * 2.98473


def test_bytes_are_even_by_a_chi_square() -> None:
    """Power: half of all bytes that come 3 % too often, the others too rarely, are found."""
    words = np.random.Philox(key=3, counter=0).random_raw(1 << 15)
    assert torch.equal(
        torch.from_numpy(words.view(np.int64)),
        torch.stack(module._words(3, 1, 1 << 13, CPU), 1).flatten(),
    )
    counts = np.bincount(words.view(np.uint8), minlength=256)
    even = counts.sum() / 256
    chi = float(((counts - even) ** 2 / even).sum())
    assert 255 - 5 * 510**0.5 < chi < 255 + 5 * 510**0.5
