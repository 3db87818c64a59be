"""The two columns of every row: on everybody's texts, and on each client's own.

`everybody` is the common model on all texts, `own` each client's own model where it has one, else
the common one, on its own texts, pooled. Results written before the columns were have them by
other names, and `columns` finds them there.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from triskel.core.result_file import ended_with
from triskel.report.descriptions import about_in, task_in

Column = Literal["everybody", "own"]
COLUMNS: tuple[Column, ...] = ("everybody", "own")
FIGURES = ("accuracy", "macro_f1", "loss", "perplexity", "token_accuracy")
Row = Mapping[str, Any]
NOTHING: Row = {}
Columns = dict[str, dict[str, Any]]
"""Figures by column; one that was not measured is not there."""


def ranked_by(result: Row) -> str:
    """Return the figure that tells rows apart: `accuracy` or `perplexity`, as the task has it."""
    return str(task_in(result).get("figure", "accuracy"))


def column_of(row: str) -> Column:
    """Return the column that a row is chosen by: clients alone have no common model."""
    return "own" if row == "local" else "everybody"


def columns(result: Row, row: str) -> Columns | None:
    """Return the columns of a baseline or a mode of a result, or None where it is not there."""
    if row in (beside := cast("Row", result.get("baselines", {}))):
        return columns_of(row, beside[row])
    if row not in (modes := cast("Row", result.get("modes", {}))):
        return None
    found = modes[row]
    final = {"per_client": ended_with(found).get("per_client", {}), **found.get("final", {})}
    return columns_of(row, final, about_in(result, row))


def columns_of(row: str, found: Row, about: Row = NOTHING) -> Columns:
    """Return the columns of one row of figures.

    Args:
        row: A baseline or a mode.
        found: Its figures, and `per_client`.
        about: What the result says of a mode.
    """
    told: Columns = {c: dict(found[c]) for c in COLUMNS if found.get(c)}
    if told:
        return told
    pooled = {name: found[name] for name in FIGURES if name in found}
    if row == "local":
        reached = found.get("global_accuracy")
        return {"own": pooled} | ({} if reached is None else {"everybody": {"accuracy": reached}})
    if not about.get("personal"):
        return {"everybody": pooled, "own": dict(pooled)}
    own = _pooled(found.get("per_client", {}))
    return ({"everybody": pooled} if about.get("common") else {}) | ({"own": own} if own else {})


def _pooled(each: Mapping[str, Row]) -> dict[str, Any]:
    """Return clients' figures together, weighted by their examples."""
    tested = [one for one in each.values() if one.get("examples")]
    count = sum(one["examples"] for one in tested)
    if not count:
        return {}
    told: dict[str, Any] = {
        name: sum(one[name] * one["examples"] for one in tested) / count
        for name in ("accuracy", "loss")
    }
    if any("perplexity" in one for one in each.values()):
        told |= {
            "perplexity": math.exp(min(told["loss"], 700.0)),
            "token_accuracy": told["accuracy"],
        }
    return told
