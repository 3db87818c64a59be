"""Import torch and what builds on it without the garbage collector in the way."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def loading() -> Generator[None]:
    """Import in here: nothing is collected meanwhile, and what is there afterwards never is.

    torch, transformers and peft leave hundreds of thousands of objects that live as long as the
    process. Otherwise the collector walks them while they are made, in every full collection of a
    run, and once more at the end. It is for a program to decide, so no part of the library does.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()
