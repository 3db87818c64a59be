"""Folders that appear whole, or not at all, whatever stops whoever writes them."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

from triskel.errors import CheckpointError


@contextmanager
def whole(folder: Path) -> Generator[Path]:
    """Yield a new folder that takes the place of `folder` when the block ends well."""
    folder = folder.absolute()
    making = folder.with_name(f".{folder.name}.making-{os.getpid()}")
    try:
        for left in folder.parent.glob(f".{escape(folder.name)}.making-*"):  # of killed runs
            shutil.rmtree(left, ignore_errors=True)
        making.mkdir(parents=True)
        yield making
        for file in making.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        _put(making, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error}; free some space or name another folder"
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _put(making: Path, folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        for file in making.iterdir():  # an empty folder may be someone's current one
            file.rename(folder / file.name)
        return
    old = making.with_name(f"{making.name}-old")
    if folder.exists():
        folder.rename(old)
    try:
        making.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
