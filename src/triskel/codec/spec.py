"""The codecs that come with Triskel, as values."""

from triskel.core.codec_spec import CodecSpec

RAW = CodecSpec(
    name="raw", gloss="floats as they are", algorithm="triskel.codec.cast:RAW", float64_bytes=8
)
FP32 = CodecSpec(name="fp32", gloss="floats in float32", algorithm="triskel.codec.cast:FP32")
BF16 = CodecSpec(
    name="bf16", gloss="floats in bfloat16", algorithm="triskel.codec.cast:BF16", float_bytes=2
)
FP16 = CodecSpec(
    name="fp16", gloss="floats in float16", algorithm="triskel.codec.cast:FP16", float_bytes=2
)
# what their scales take depends on shapes, so that the bound is that of float32
INT8 = CodecSpec(
    name="int8", gloss="a byte a float, a scale a row", algorithm="triskel.codec.quantise:INT8"
)
INT4 = CodecSpec(
    name="int4",
    gloss="half a byte a float, a scale a group",
    algorithm="triskel.codec.quantise:INT4",
)
