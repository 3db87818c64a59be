"""The table of what jobs lose by length says what was measured."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = {
    "demo": "the demo",
    "banking77": "[BANKING77](banking77.md)",
    "banking77_causal": "BANKING77 as text",
}


def test_the_table_is_of_the_figures() -> None:
    figures = json.loads((ROOT / "benchmarks/results/lengths.json").read_text("utf-8"))["figures"]
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    assert figures.keys() == NAMES.keys()
    for job, told in figures.items():
        shares = [told[name] for name in ("train", "test", "public")]
        cells = [
            f"{one['tokens']:,} of {one['of']:,} ({one['tokens'] / one['of']:.1%})".replace(
                "%", " %"
            )
            for one in shares
        ]
        texts, rows = (sum(one[key] for one in shares) for key in ("texts", "rows"))
        left = sum(one["left_out"] for one in shares)
        line = [NAMES[job], str(told["max_tokens"]), *cells, f"{texts} of {rows:,}", str(left)]
        assert f"| {' | '.join(line)} |" in page
