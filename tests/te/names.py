"""Names of the checks of ``checks.py``, which the tests' own process cannot import."""

CHECKS = (
    "linear",
    "layer norm",
    "rms norm",
    "mlp",
    "delayed",
    "current",
    "blockwise",
    "fused quantization",
    "quantizers",
    "accumulation",
    "gelu of a product",
    "activations",
    "attention",
    "packed attention",
    "softmax",
    "rope",
    "adam",
    "multi tensor",
    "padding",
    "master weights",
    "delayed scales",
)
CHECKS_ON_BLACKWELL = ("mxfp8", "mxfp8 quantizer", "mxfp8 master weights")
