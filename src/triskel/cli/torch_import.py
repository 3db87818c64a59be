"""What is settled before a command imports torch, which reads it once."""

import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from triskel.core.threads import begun_with, settle


def settle_threads(console: Console, folder: Path) -> None:
    """Say how torch computes, before it is imported: as the run of a folder began, if one did."""
    if "torch" not in sys.modules:
        places = [folder, *sorted(folder.glob("seed-*"))]
        begun = [begun_with(place / "choices.json") for place in places]
        said = settle(os.environ, next((n for n in begun if n is not None), None))
        if said is not None:
            console.print(escape(said), soft_wrap=True)
