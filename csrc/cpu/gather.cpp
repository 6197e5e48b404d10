// downsample_gather and its backward: copies, whatever the number format.

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "blocks.h"

namespace vila_mc {
namespace {

Tensor downsample_gather(const Tensor& given, int64_t factor, bool has_cls) {
    const Blocks blocks = blocks_of_features(given, factor, has_cls);
    const Tensor features = torch::stable::contiguous(given);
    Tensor out =
        torch::stable::new_empty(features, {blocks.images, blocks.tokens(), blocks.channels()});
    if (out.numel() == 0) return out;
    const auto* from = static_cast<const char*>(features.const_data_ptr());
    auto* to = static_cast<char*>(out.mutable_data_ptr());
    const int64_t size = features.element_size();
    for_rows(blocks.images * blocks.tokens(), blocks.channels(), [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            char* row = to + token * blocks.channels() * size;
            for_runs(blocks, token, [&](int64_t channel, int64_t patch, int64_t width) {
                if (patch < 0)
                    std::memset(row + channel * size, 0, width * size);
                else
                    std::memcpy(row + channel * size, from + patch * blocks.width * size,
                                width * size);
            });
        }
    });
    return out;
}

Tensor downsample_gather_backward(const Tensor& given, int64_t grid, int64_t factor, bool has_cls) {
    const Blocks blocks = blocks_of_tokens(given, grid, factor, has_cls);
    const Tensor grad = torch::stable::contiguous(given);
    Tensor out = torch::stable::new_empty(grad, {blocks.images, blocks.patches(), blocks.width});
    if (out.numel() == 0) return out;
    const auto* from = static_cast<const char*>(grad.const_data_ptr());
    auto* to = static_cast<char*>(out.mutable_data_ptr());
    const int64_t size = grad.element_size(), patch_size = blocks.width * size;
    if (has_cls)
        for (int64_t image = 0; image < blocks.images; ++image)
            std::memset(to + image * blocks.patches() * patch_size, 0, patch_size);
    for_rows(blocks.images * blocks.tokens(), blocks.channels(), [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            const char* row = from + token * blocks.channels() * size;
            for_runs(blocks, token, [&](int64_t channel, int64_t patch, int64_t width) {
                if (patch >= 0)
                    std::memcpy(to + patch * patch_size, row + channel * size, width * size);
            });
        }
    });
    return out;
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CPU, m) {
    m.impl("downsample_gather", TORCH_BOX(&vila_mc::downsample_gather));
    m.impl("downsample_gather_backward", TORCH_BOX(&vila_mc::downsample_gather_backward));
}
