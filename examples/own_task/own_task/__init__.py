"""What the task of the last word is: a task of another package, found by its entry point."""

from collections.abc import Iterator
from typing import Any

from triskel.core.task_spec import TaskSpec


def problems(data: Any) -> Iterator[str]:
    """Return what is missing in the section `[data]` of a job."""
    if not data.text:
        yield "data.text must name a column for last_word"


def unread(data: Any) -> Iterator[tuple[str, str]]:
    """Return keys of that section which this task has no use for."""
    for key in ("prompt", "response", "template", "classes"):
        if getattr(data, key):
            yield f"data.{key}", "for last_word"


SPEC = TaskSpec(
    name="last_word",
    gloss="the last word of a text",
    head="vocabulary",
    figure="accuracy",
    algorithm="own_task.task:LastWord",
    columns=lambda data: {"text": data.text},
    problems=problems,
    unread=unread,
)
