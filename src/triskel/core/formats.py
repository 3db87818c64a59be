"""How numbers are written, in one place: decimal bytes, FLOPs, seconds, scores.

`None` means that nothing was measured and reads as a dash, never as zero.
"""

# ruff: noqa: PLR2004  thresholds where rounding changes the unit

DASH = "–"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for size, unit in steps:
        if abs(value) >= size * 0.9995:
            scaled = value / size
            places = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{places}f} {unit}"
    return f"{value:.0f} {steps[-1][1]}"


BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
FLOPS = ((1e18, "EFLOPs"), (1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))


def size(count: float | None) -> str:
    """Write a number of bytes in decimal units.

    >>> size(1_843_200), size(2_400), size(17), size(0), size(None)
    ('1.84 MB', '2.40 kB', '17 B', '0 B', '–')
    """
    if count is None:
        return DASH
    return f"{count:.0f} B" if abs(count) < 999.5 else _scaled(count, BYTES)


def exact(count: float | None) -> str:
    """Write a number of bytes to the last one.

    >>> exact(1_843_200), exact(None)
    ('1,843,200 bytes', 'not measured')
    """
    return "not measured" if count is None else f"{count:,.0f} bytes"


def flops(count: float | None) -> str:
    """Write a number of floating point operations.

    >>> flops(3.2e12), flops(512e9), flops(12), flops(None)
    ('3.20 TFLOPs', '512 GFLOPs', '12 FLOPs', '–')
    """
    if count is None:
        return DASH
    return f"{count:.0f} FLOPs" if abs(count) < 1e6 else _scaled(count, FLOPS)


def gflops(count: float | None) -> str:
    """Write a number of floating point operations in units of 10^9, for a column to compare.

    >>> gflops(3.2e12), gflops(4.56e9), gflops(None)
    ('3,200', '4.56', '–')
    """
    if count is None:
        return DASH
    value = count / 1e9
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Write a time a person can take in.

    >>> duration(0.0312), duration(4.25), duration(62), duration(3725), duration(200_000)
    ('31 ms', '4.2 s', '1 min 02 s', '1 h 02 min', '2 d 7 h')
    """
    if seconds is None:
        return DASH
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds > 0 else "0 s"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def score(value: float | None, places: int = 3) -> str:
    """Write an accuracy, an F1 or a loss.

    >>> score(0.6512), score(None), score(0.6512, 2)
    ('0.651', '–', '0.65')
    """
    return DASH if value is None else f"{value:.{places}f}"


def perplexity(value: float | None) -> str:
    """Write a perplexity.

    >>> perplexity(12.345), perplexity(1234.5), perplexity(None)
    ('12.35', '1,234', '–')
    """
    if value is None:
        return DASH
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """Write a share.

    >>> percent(0.9012), percent(None)
    ('90 %', '–')
    """
    return DASH if share is None else f"{share * 100:.0f} %"


def joined(words: list[str], last: str = "and") -> str:
    """Write a list the way a sentence does.

    >>> joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def plural(count: int, word: str) -> str:
    """Write how many there are of something.

    >>> plural(1, "round"), plural(3, "round")
    ('1 round', '3 rounds')
    """
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
