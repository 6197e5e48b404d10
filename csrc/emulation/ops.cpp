// The kernels behind the names of csrc/ops.cpp, for the emulator's case files.
#include "../cuda/gather.cuh"
#include "../cuda/layernorm.cuh"
#include "../cuda/layernorm_backward.cuh"
#include "../cuda/patchify.cuh"
#include "../cuda/splice.cuh"
#include "case.h"

namespace vila_mc {
namespace {

PatchBlocks patch_blocks(const Case& c) {
    return {int(c.integer("grid")), int(c.integer("prefix")), int(c.integer("width")),
            int(c.integer("factor"))};
}

int64_t rows(const Case& c) { return c.integer("images") * patch_blocks(c).tokens(); }

Sequence sequence(const Case& c) {
    return {c.integer("rows"), c.integer("positions"), c.integer("first_position"),
            c.integer("sequence_first") != 0};
}

VisualTokens visual_tokens(const Case& c) {
    return {c.tensor<const int64_t>("starts"), c.integer("images"), int(c.integer("each"))};
}

int gather(const Case& c) {
    return launch_gather_forward(c.tensor<const void>("patches"), c.tensor<void>("tokens"),
                                 int(c.integer("element_bytes")), c.integer("images"),
                                 patch_blocks(c), nullptr);
}

int gather_backward(const Case& c) {
    return launch_gather_backward(c.tensor<const void>("tokens_grad"),
                                  c.tensor<void>("patches_grad"), int(c.integer("element_bytes")),
                                  c.integer("images"), patch_blocks(c), nullptr);
}

template <class T>
int norm(const Case& c) {
    const NormForward<T> a{c.tensor<const T>("patches"),
                           c.tensor<const T>("weight"),
                           c.tensor<const T>("bias"),
                           c.tensor<T>("normal"),
                           c.tensor<float>("mean"),
                           c.tensor<float>("rstd"),
                           rows(c),
                           patch_blocks(c),
                           c.real("epsilon")};
    return launch_norm_forward(a, nullptr);
}

template <class T>
int norm_backward(const Case& c) {
    const NormBackward<T> a{c.tensor<const T>("grad"),
                            c.tensor<const T>("patches"),
                            c.tensor<const T>("weight"),
                            c.tensor<const float>("mean"),
                            c.tensor<const float>("rstd"),
                            c.tensor<T>("patches_grad"),
                            c.tensor<float>("partial"),
                            c.tensor<T>("weight_grad"),
                            c.tensor<T>("bias_grad"),
                            rows(c),
                            patch_blocks(c)};
    return launch_norm_backward(a, norm_backward_parts(a), nullptr);
}

int splice(const Case& c) {
    int* const map = c.tensor<int>("map");
    const int refused = launch_splice_map(visual_tokens(c), sequence(c), map, nullptr);
    if (refused != 0) return refused;
    const int64_t embeddings = sequence(c).embeddings(), row_bytes = c.integer("row_bytes");
    if (c.op() == "splice_visual")
        return launch_splice_forward(c.tensor<const void>("text"), c.tensor<const void>("visual"),
                                     map, c.tensor<void>("spliced"), embeddings, row_bytes,
                                     nullptr);
    return launch_splice_text_grad(c.tensor<const void>("grad"), map, c.tensor<void>("text_grad"),
                                   embeddings, row_bytes, nullptr);
}

int splice_visual_tokens_grad(const Case& c) {
    return launch_splice_visual_grad(c.tensor<const void>("grad"), visual_tokens(c), sequence(c),
                                     c.tensor<void>("visual_grad"), c.integer("row_bytes"),
                                     nullptr);
}

template <class T>
int patchify(const Case& c) {
    const Patchify<T> a{
        c.tensor<const uint8_t>("images"), c.tensor<const T>("table"), c.tensor<T>("patches"),
        int(c.integer("height")),          int(c.integer("width")),    int(c.integer("patch"))};
    return launch_patchify(a, c.integer("count"), nullptr);
}

template <class T>
int run_typed(const Case& c) {
    if (c.op() == "downsample_layernorm") return norm<T>(c);
    if (c.op() == "downsample_layernorm_backward") return norm_backward<T>(c);
    if (c.op() == "normalize_patchify") return patchify<T>(c);
    return -1;
}

}  // namespace

int run_op(const Case& c) {
    if (c.op() == "downsample_gather") return gather(c);
    if (c.op() == "downsample_gather_backward") return gather_backward(c);
    if (c.op() == "splice_visual" || c.op() == "splice_visual_text_grad") return splice(c);
    if (c.op() == "splice_visual_visual_grad") return splice_visual_tokens_grad(c);
    switch (c.integer("format", 0)) {
        case 1:
            return run_typed<float>(c);
        case 2:
            return run_typed<bf16>(c);
        case 3:
            return run_typed<half>(c);
        default:
            return -1;
    }
}

}  // namespace vila_mc
