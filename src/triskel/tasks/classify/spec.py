"""What the task `classify` is: one class for every text."""

from collections.abc import Iterator, Mapping
from typing import Any

from triskel.core.task_spec import Column, TaskSpec


def columns(data: Any) -> Mapping[str, Column]:  # noqa: ANN401 - the section `data`
    """Return the column of the text."""
    return {"text": data.text or ("text" if data.source == "opinions" else "")}


def problems(data: Any) -> Iterator[str]:  # noqa: ANN401 - the section `data`
    """Return what is missing."""
    if data.source != "opinions" and not (data.text and data.label):
        yield "data.text and data.label must name columns for a classify task"


def unread(data: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - the section `data`
    """Return keys of texts that are written."""
    for key in ("prompt", "response"):
        if getattr(data, key):
            yield f"data.{key}", "for a classify task"
    if data.template:
        yield "data.template", "without data.prompt and data.response"


SPEC = TaskSpec(
    name="classify",
    gloss="one class a text",
    head="classes",
    figure="accuracy",
    algorithm="triskel.tasks.classify.task:Classify",
    columns=columns,
    labelled=True,
    max_tokens=48,
    problems=problems,
    unread=unread,
)
