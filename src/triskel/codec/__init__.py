"""Codecs change how the floats of a message travel: fewer bytes for a stated error.

encode: original floats  ->  codes (+ scales)      recorded in `Section.codec` and facts `codec:*`
decode: codes (+ scales) ->  floats of the original dtype, names and shapes

Integers, bools and facts travel as they are, and so do scalars along seeds: one of them moves
thousands of numbers, and both sides must rebuild the same. `decode` gives every tensor its original
dtype back, whatever the codec: a bfloat16 tensor that travelled as fp32 is the same bfloat16 tensor
again, and a result beyond the range of the original dtype is its largest number, not infinity.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from triskel.codec.protocol import Codec
from triskel.config.sections import CodecName
from triskel.core.codec_spec import CodecSpec
from triskel.core.registry import CODECS, imported
from triskel.errors import CodecError, MessageError, PluginError
from triskel.types import Fact, Message, Section, Tensors
from triskel.wire import DTYPE_NAMES, DTYPES, check_section, show

__all__ = ["Codec", "codec_of", "decode", "encode"]

EXACT = "seeds"
"""The kind of section whose floats no codec changes."""


def codec_of(name: str) -> Codec:
    """Return a codec by its name, its package imported at the first call.

    Raises:
        PluginError: There is none of this name, or its package is broken.
    """
    return _algorithm(CODECS.spec(name))


@functools.cache
def _algorithm(spec: CodecSpec) -> Codec:
    found = imported(spec.algorithm, f"codec {spec.name!r}")
    if not isinstance(found, Codec):
        raise PluginError(f"codec {spec.name!r}: {spec.algorithm} is no codec")
    return found


def encode(message: Message, codec: CodecName) -> Message:
    """Return the message with its float tensors as `codec` has them travel.

    Raises:
        CodecError: A tensor has numbers that the codec cannot carry, or was encoded so before.
    """
    return replace(
        message,
        sections={name: _encode(name, each, codec) for name, each in message.sections.items()},
    )


def decode(message: Message) -> Message:
    """Return the message as it was before any codec, up to each codec's error, and check it.

    Raises:
        MessageError: The codes are not what the codec writes, or a decoded section is not of its
            kind.
    """
    return replace(
        message,
        sections={name: _decode(name, each) for name, each in message.sections.items()},
    )


def _encode(name: str, section: Section, codec: CodecName) -> Section:
    codec = "raw" if section.kind == EXACT else codec
    if codec in section.codec:
        raise CodecError(f"section {name!r} already carries {codec}; encode a message once")
    floats = {
        n: x.detach() if x.requires_grad else x
        for n, x in section.tensors.items()
        if x.is_floating_point()
    }
    rest = {n: x for n, x in section.tensors.items() if n not in floats}
    try:
        coded, facts, _ = codec_of(codec).encode(floats, {})
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


def _decode(name: str, section: Section) -> Section:
    while section.codec:
        *before, codec = section.codec
        own = {k.partition(":")[2]: v for k, v in section.facts.items() if _owner(k) == codec}
        kept = {k: v for k, v in section.facts.items() if _owner(k) != codec}
        if codec not in CODECS.loaded():
            raise MessageError(f"section {name!r} carries the unknown codec {codec!r}")
        try:
            tensors, _ = codec_of(codec).decode(section.tensors, own, {})
            if codec != "raw":
                tensors = _restore(tensors, own.get("dtype"))
        except MessageError as error:
            raise MessageError(f"section {name!r}, codec {codec}: {error}") from error
        section = replace(section, tensors=tensors, facts=kept, codec=tuple(before))
    for left in (*section.tensors, *section.facts):
        if ":" in left:
            raise MessageError(f"section {name!r}: {left!r} belongs to no codec it carries")
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
