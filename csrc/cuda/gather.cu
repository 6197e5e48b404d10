// downsample_gather and its backward on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include "device.h"
#include "gather.cuh"

namespace vila_mc {
namespace {

Tensor downsample_gather(const Tensor& given, int64_t factor, bool has_cls) {
    const Blocks blocks = blocks_of_features(given, factor, has_cls);
    const Tensor features = torch::stable::contiguous(given);
    Tensor tokens =
        torch::stable::new_empty(features, {blocks.images, blocks.tokens(), blocks.channels()});
    const OnDevice device(features);
    check_launch(
        "downsample_gather",
        launch_gather_forward(in<void>(features), out<void>(tokens), int(features.element_size()),
                              blocks.images, patch_blocks_of(blocks), device.stream()));
    return tokens;
}

Tensor downsample_gather_backward(const Tensor& given, int64_t grid, int64_t factor, bool has_cls) {
    const Blocks blocks = blocks_of_tokens(given, grid, factor, has_cls);
    const Tensor grad = torch::stable::contiguous(given);
    Tensor features_grad =
        torch::stable::new_empty(grad, {blocks.images, blocks.patches(), blocks.width});
    const OnDevice device(grad);
    check_launch(
        "downsample_gather_backward",
        launch_gather_backward(in<void>(grad), out<void>(features_grad), int(grad.element_size()),
                               blocks.images, patch_blocks_of(blocks), device.stream()));
    return features_grad;
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CUDA, m) {
    m.impl("downsample_gather", TORCH_BOX(&vila_mc::downsample_gather));
    m.impl("downsample_gather_backward", TORCH_BOX(&vila_mc::downsample_gather_backward));
}
