// Names and signatures of the operations; csrc/cpu and csrc/cuda register what computes them.
//
// Shape letters: n images, g patches along a side, e ViT width, f block side (`factor`),
// t = ceil(g / f)^2 tokens, q visual tokens per image, b rows, s positions, h LLM width.
// Autograd and fake (shape only) versions are registered in vila_mc/kernels/native.py.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vila_mc, m) {
    // features [n, cls + g * g, e] -> [n, t, f * f * e], channels ordered (dy, dx, e).
    m.def("downsample_gather(Tensor features, int factor, bool has_cls) -> Tensor");
    // grad [n, t, f * f * e] -> [n, cls + g * g, e]; `grid` is g. The CLS row gets zeros.
    m.def("downsample_gather_backward(Tensor grad, int grid, int factor, bool has_cls) -> Tensor");

    // The gather, then LayerNorm over f * f * e with `weight` and `bias` of that length.
    // -> out [n, t, f * f * e]; mean and rstd [n, t], fp32 (fp64 for fp64 features).
    m.def(
        "downsample_layernorm(Tensor features, Tensor weight, Tensor bias, int factor, "
        "bool has_cls, float eps) -> (Tensor, Tensor, Tensor)");
    // -> gradients of features, weight, bias. Gathers the features again.
    m.def(
        "downsample_layernorm_backward(Tensor grad, Tensor features, Tensor weight, Tensor mean, "
        "Tensor rstd, int factor, bool has_cls) -> (Tensor, Tensor, Tensor)");

    // text with visual [n, q, h] at image_starts [n, 2] int64 (row, first position). text is
    // [b, s, h], or [s, b, h] if `sequence_first`; it may be a shard, from `first_position` on, of
    // a sequence of `sequence_length`: positions outside it are left to the other shards.
    m.def(
        "splice_visual(Tensor text, Tensor visual, Tensor image_starts, bool sequence_first, "
        "int first_position, int sequence_length) -> Tensor");
    // grad like text -> the gradient of text: grad with zeros where visual tokens stand.
    m.def(
        "splice_visual_text_grad(Tensor grad, Tensor image_starts, int num_visual, "
        "bool sequence_first, int first_position, int sequence_length) -> Tensor");
    // grad like text -> the gradient of visual [n, num_visual, h]; zeros outside the shard.
    m.def(
        "splice_visual_visual_grad(Tensor grad, Tensor image_starts, int num_visual, "
        "bool sequence_first, int first_position, int sequence_length) -> Tensor");

    // images uint8 [n, 3, y, x], table [3, 256]: the normalised value of every level of every
    // channel -> [n, (y / patch) * (x / patch), 3 * patch * patch] in the table's dtype, channels
    // ordered (c, dy, dx) as a convolution's flattened weight. What fills no patch, at the right
    // and bottom, is left out.
    m.def("normalize_patchify(Tensor images, Tensor table, int patch) -> Tensor");
}
