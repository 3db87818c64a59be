"""Which files a test opens, told as they are opened.

Not by `sys.addaudithook`: such a hook stays for the life of the process, and before Python 3.12 a
thread switch inside any hook makes a thread that is just being started by somebody else fail when
a tracer (coverage) is on: it shares one flag of the process while `sys.settrace` is audited.
"""

import builtins
import io
import os
from collections.abc import Callable
from typing import Any

import pytest


def listen(monkeypatch: pytest.MonkeyPatch, heard: Callable[[str], object]) -> None:
    """Tell `heard` the path of every file that is opened from here on, until the test ends."""

    def told(real: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as it is called
            if isinstance(path, str | os.PathLike):
                heard(str(path))
            return real(path, *given, **named)

        return opening

    for module in (builtins, io, os):
        monkeypatch.setattr(module, "open", told(module.open))
