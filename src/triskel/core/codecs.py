"""The codecs that come with Triskel, as values, which a job is read with: no torch."""

from typing import Annotated

from pydantic import Field

from triskel.core.codec_spec import ChangeOptions, CodecSpec, OnlyChangeOptions


class TopKOptions(OnlyChangeOptions):
    """What may be set beside `topk`."""

    share: Annotated[
        float, Field(gt=0, le=0.25, description="so much of the entries, the largest, travel")
    ] = 0.01


RAW = CodecSpec(
    name="raw", gloss="floats as they are", algorithm="triskel.codec.cast:RAW", float64_bytes=8
)
FP32 = CodecSpec(name="fp32", gloss="floats in float32", algorithm="triskel.codec.cast:FP32")
BF16 = CodecSpec(
    name="bf16",
    gloss="floats in bfloat16",
    algorithm="triskel.codec.cast:BF16",
    float_bytes=2,
    options=ChangeOptions,
)
FP16 = CodecSpec(
    name="fp16",
    gloss="floats in float16",
    algorithm="triskel.codec.cast:FP16",
    float_bytes=2,
    options=ChangeOptions,
)
# what their scales take depends on shapes, so that the bound is that of float32
INT8 = CodecSpec(
    name="int8",
    gloss="a byte a float, a scale a row",
    algorithm="triskel.codec.quantise:INT8",
    options=ChangeOptions,
)
INT4 = CodecSpec(
    name="int4",
    gloss="half a byte a float, a scale a group",
    algorithm="triskel.codec.quantise:INT4",
    options=ChangeOptions,
)
TOPK = CodecSpec(
    name="topk",
    gloss="the largest entries of a change",
    algorithm="triskel.codec.topk:TopK",
    options=TopKOptions,
)
SIGN = CodecSpec(
    name="sign",
    gloss="a bit a float of a change, a scale a row",
    algorithm="triskel.codec.sign:SIGN",
    options=OnlyChangeOptions,
)
