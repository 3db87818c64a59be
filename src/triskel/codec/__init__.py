"""Codecs change how the floats of a message travel: fewer bytes for a stated error.

encode: original floats  ->  codes (+ scales)      recorded in `Section.codec` and facts `codec:*`
decode: codes (+ scales) ->  floats of the original dtype, names and shapes

Integers, bools and facts travel as they are, and so do scalars along seeds: one of them moves
thousands of numbers, and both sides must rebuild the same. `decode` gives every tensor its original
dtype back, whatever the codec: a bfloat16 tensor that travelled as fp32 is the same bfloat16 tensor
again, and a result beyond the range of the original dtype is its largest number, not infinity.

A section may be a change against what the receiver holds (`codec.change`). Codecs are undone down
to it; what it is the change of, only its receiver knows.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from triskel.codec.change import is_change
from triskel.codec.protocol import Codec
from triskel.config.wire import Direction, Wire, change_options
from triskel.core.choice import Chosen, name_of, options_of
from triskel.core.codec_spec import CHANGE, CodecSpec
from triskel.core.registry import CODECS, imported
from triskel.errors import CodecError, MessageError, PluginError
from triskel.types import Fact, Message, Section, Tensors
from triskel.wire import DTYPE_NAMES, DTYPES, LIMIT_BYTES, check_section, show

__all__ = ["Codec", "codec_of", "decode", "encode", "travelling"]

EXACT = "seeds"
"""The kind of section whose floats no codec changes."""


def codec_of(chosen: Chosen) -> Codec:
    """Return a codec by its name and what is set, its package imported at the first call.

    Raises:
        PluginError: There is none of this name, or its package is broken.
    """
    return _algorithm(CODECS.spec(name_of(chosen)), chosen)


@functools.cache
def _algorithm(spec: CodecSpec, chosen: Chosen) -> Codec:
    found = imported(spec.algorithm, f"codec {spec.name!r}")
    found = found(options_of(chosen, spec.options)) if isinstance(found, type) else found
    if not isinstance(found, Codec):
        raise PluginError(f"codec {spec.name!r}: {spec.algorithm} is no codec")
    return found


def encode(message: Message, codec: Chosen) -> Message:
    """Return the message with its float tensors as `codec` has them travel.

    Raises:
        CodecError: A tensor has numbers that the codec cannot carry, or was encoded so before.
    """
    return replace(
        message,
        sections={name: _encode(name, each, codec) for name, each in message.sections.items()},
    )


def travelling(message: Message, wire: Wire, way: Direction) -> Message:
    """Return the message as a job has it travel, each section under the codec that it names.

    A codec that carries changes carries nothing else: what is none travels whole, as `raw`.

    Raises:
        CodecError: As of `encode`.
    """

    def chosen(name: str, section: Section) -> Chosen:
        found = wire.codec(way, name)
        return "raw" if change_options(found) and not is_change(section) else found

    sections = {
        name: _encode(name, each, chosen(name, each)) for name, each in message.sections.items()
    }
    return replace(message, sections=sections)


def decode(message: Message, *, changes: bool = False, limit_bytes: int = LIMIT_BYTES) -> Message:
    """Return the message as it was before any codec, up to each codec's error, and check it.

    Args:
        message: As it was unpacked.
        changes: Whether sections may be changes, which are left as such.
        limit_bytes: What its tensors may take, once decoded, where few bytes stand for many.

    Raises:
        MessageError: The codes are not what the codec writes, or a decoded section is not of its
            kind.
    """
    sections: dict[str, Section] = {}
    for name, each in message.sections.items():
        sections[name] = found = _decode(name, each, limit_bytes, changes=changes)
        limit_bytes -= sum(x.nbytes for x in found.tensors.values())
    return replace(message, sections=sections)


def _encode(name: str, section: Section, chosen: Chosen) -> Section:
    chosen = "raw" if section.kind == EXACT else chosen
    codec = name_of(chosen)
    if codec in section.codec:
        raise CodecError(f"section {name!r} already carries {codec}; encode a message once")
    floats = {
        n: x.detach() if x.requires_grad else x
        for n, x in section.tensors.items()
        if x.is_floating_point()
    }
    rest = {n: x for n, x in section.tensors.items() if n not in floats}
    try:
        coded, facts = codec_of(chosen).encode(floats)
    except CodecError as error:
        raise CodecError(f"section {name!r}: {error}") from error
    own: dict[str, Fact] = {f"{codec}:{key}": value for key, value in facts.items()}
    dtypes = [DTYPE_NAMES[x.dtype] for x in floats.values()]
    if codec != "raw" and dtypes:
        own[f"{codec}:dtype"] = dtypes[0] if len(set(dtypes)) == 1 else dtypes
    return replace(
        section,
        tensors={**coded, **rest},
        facts={**section.facts, **own},
        codec=(*section.codec, codec),
    )


def _decode(name: str, section: Section, most_bytes: int, *, changes: bool) -> Section:
    while section.codec and section.codec != (CHANGE,):
        *before, codec = section.codec
        own = {k.partition(":")[2]: v for k, v in section.facts.items() if _owner(k) == codec}
        kept = {k: v for k, v in section.facts.items() if _owner(k) != codec}
        if codec not in CODECS.loaded():
            raise MessageError(f"section {name!r} carries the unknown codec {codec!r}")
        try:
            tensors = codec_of(codec).decode(section.tensors, own, most_bytes)
            if codec != "raw":
                tensors = _restore(tensors, own.get("dtype"))
        except MessageError as error:
            raise type(error)(f"section {name!r}, codec {codec}: {error}") from error
        section = replace(section, tensors=tensors, facts=kept, codec=tuple(before))
    if is_change(section) and not changes:
        raise MessageError(f"section {name!r} is a change, and this job sends none that way")
    for left in (*section.tensors, *section.facts):
        if ":" in left and not (is_change(section) and _owner(left) == CHANGE):
            raise MessageError(f"section {name!r}: {left!r} belongs to no codec it carries")
    if not is_change(section):
        check_section(name, section)
    return section


def _owner(fact: str) -> str:
    return fact.partition(":")[0] if ":" in fact else ""


def _restore(tensors: Tensors, dtype: Fact) -> Tensors:
    floats = [n for n, x in tensors.items() if x.is_floating_point()]
    names = [dtype] * len(floats) if isinstance(dtype, str) else dtype or []
    if not isinstance(names, Sequence) or len(names) != len(floats):
        raise MessageError(f"fact 'dtype' must name {len(floats)} dtypes, got {show(dtype)}")
    restored = dict(tensors)
    for name, wanted in zip(floats, names, strict=True):
        to = DTYPES.get(wanted) if isinstance(wanted, str) else None
        if to is None or not to.is_floating_point:
            raise MessageError(f"fact 'dtype' must name float dtypes, got {show(wanted)}")
        if tensors[name].dtype != to:
            restored[name] = _within(tensors[name], to)
    return restored


def _within(x: Tensor, dtype: torch.dtype) -> Tensor:
    most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    # In float32, because a narrow type may have no number between `most` and infinity.
    return x.to(torch.float32).clamp(-most, most).to(dtype)
