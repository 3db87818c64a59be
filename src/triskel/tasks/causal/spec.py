"""What the task `causal` is: the response to a prompt, or a text, token by token."""

from collections.abc import Iterator, Mapping
from typing import Any

from triskel.core.task_spec import Column, TaskSpec, around, filled, words_in

PLAIN = "### Instruction:\n{prompt}\n\n### Response:\n{response}"
"""How prompt and response are laid out when `data.template` is empty."""


def columns(data: Any) -> Mapping[str, Column]:  # noqa: ANN401 - the section `data`
    """Return the columns of prompt and response, or of the text.

    Where a template names columns, the prompt is all of it that stands before the response.
    """
    if not data.prompt:
        return {"text": data.text}
    prompt: Column = data.prompt
    if more_in(data.template):
        prompt = filled(around(data.template, "response")[0], {"prompt": data.prompt})
    return {"prompt": prompt, "response": data.response}


def more_in(template: str) -> list[str]:
    """Return the columns that a template names beside prompt and response."""
    return [word for word in words_in(template) if word not in {"prompt", "response"}]


def problems(data: Any) -> Iterator[str]:  # noqa: ANN401 - the section `data`
    """Return what is missing."""
    if data.source == "opinions":
        yield 'data.source "opinions" is a classify task; give your own data for causal'
    if bool(data.prompt) != bool(data.response):
        yield "data.prompt and data.response go together; give both, or data.text alone"
    if not (data.prompt or data.text):
        yield "data.prompt and data.response, or data.text, must name columns for causal"
    words = words_in(data.template)
    once = all(words.count(word) == 1 for word in ("prompt", "response"))
    laid_out = data.prompt and data.template not in {"", "chat"}
    if laid_out and not (once and words[-1] == "response"):
        yield (
            'data.template must be "chat", or a text with {prompt} once, columns by name in braces '
            f"where it needs more, and {{response}} once after all of them; got {data.template!r}"
        )


def unread(data: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - the section `data`
    """Return keys of classes, and of a layout that is not there."""
    if data.prompt and data.text:
        yield "data.text", "beside data.prompt and data.response"
    if data.template and not data.prompt:
        yield "data.template", "without data.prompt and data.response"
    if data.classes:
        yield "data.classes", "for a causal task"


def layout(data: Any) -> str:  # noqa: ANN401 - the section `data`
    """Return how prompt and response are laid out; empty for plain texts."""
    return (data.template or PLAIN) if data.prompt else ""


SPEC = TaskSpec(
    name="causal",
    gloss="the response to a prompt, or a text, token by token",
    head="vocabulary",
    figure="perplexity",
    algorithm="triskel.tasks.causal.task:Causal",
    columns=columns,
    problems=problems,
    unread=unread,
    layout=layout,
)
