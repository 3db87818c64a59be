"""Puts `engine.py` in the place of `triskel.engines.flare` in every process that has this path."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

NAME = "triskel.engines.flare"


class Finder:
    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name != NAME:
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).with_name("engine.py"))


sys.meta_path.insert(0, Finder)
