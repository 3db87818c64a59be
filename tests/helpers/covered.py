"""Which lines and branches of `triskel` the tests run, where `TRISKEL_COVERED=1` asks for it.

SlipCover puts a probe before each line and branch of this package's code. A tracer would be told of
every call and line of every library beside it, which took a third of the time of all tests.
"""

# ruff: noqa: ANN401 - hooks are loaded by name

import ast
import json
import os
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "triskel"
LEFT_OUT = [r"\.\.\.$", "if TYPE_CHECKING:", r"assert_never\("]
NEVER = 2**30  # a probe stays where it is: code is not replaced while it runs


class Probes:
    """Puts probes into code as it is loaded, and adds up what they and other workers' saw."""

    def __init__(self, source: Path = SOURCE) -> None:
        import slipcover  # noqa: PLC0415 - only where it is asked for
        from slipcover import branch  # noqa: PLC0415

        self.library, self.branch = slipcover, branch
        self.probes = slipcover.Slipcover(
            branch=True, source=[str(source)], exclude_also=LEFT_OUT, d_miss_threshold=NEVER
        )
        self.found: dict[str, Any] = {}

    def marked(self, tree: ast.Module) -> ast.Module:
        """Mark where branches begin."""
        return self.branch.preinstrument(tree)

    def put(self, code: CodeType) -> CodeType:
        """Put probes at all lines and marks."""
        return self.probes.instrument(code)

    def add(self, seen: dict[str, Any]) -> None:
        """Add what another worker saw."""
        self.found = self.library.merge_coverage(self.found, seen) if self.found else seen


PROBES = Probes() if os.environ.get("TRISKEL_COVERED") else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what was seen to whoever adds it up."""
    if PROBES is None:
        return
    workers = getattr(session.config.option, "numprocesses", 0)
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["covered"] = json.dumps(PROBES.probes.get_coverage())
    elif not workers:
        PROBES.add(PROBES.probes.get_coverage())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker saw, unless it died."""
    seen = getattr(node, "workeroutput", {}).get("covered")
    if PROBES is not None and seen:
        PROBES.add(json.loads(seen))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the files of which not every line and branch ran."""
    if PROBES is not None and PROBES.found:
        terminalreporter.section("lines and branches that ran")
        PROBES.library.print_coverage(
            PROBES.found, outfile=terminalreporter._tw._file, skip_covered=True
        )
