// normalize_patchify on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include "device.h"
#include "patchify.cuh"

namespace vila_mc {
namespace {

Tensor normalize_patchify(const Tensor& given, const Tensor& given_table, int64_t patch) {
    const Patches cut = patches_of(given, given_table, patch);
    const int64_t n = cut.images, y = cut.y, x = cut.x;
    if (kChannels * patch * x > kMaxStrip)
        refuse("patches of ", patch, " pixels in images ", x, " wide want ", kChannels * patch * x,
               " bytes of shared memory; the CUDA kernel takes up to ", kMaxStrip,
               ". Use vila_mc.kernels.reference for wider ones.");
    const Tensor images = torch::stable::contiguous(given);
    const Tensor table = torch::stable::contiguous(given_table);
    small("rows of patches", n * cut.lines());
    Tensor patches = torch::stable::new_empty(table, {n, cut.lines() * cut.columns(), cut.width()});
    const OnDevice device(images);
    with_cuda_float(table.scalar_type(), [&](auto number) {
        using T = decltype(number);
        const Patchify<T> arguments{in<uint8_t>(images), in<T>(table),       out<T>(patches),
                                    small("pixels", y),  small("pixels", x), int(patch)};
        check_launch("normalize_patchify", launch_patchify(arguments, n, device.stream()));
    });
    return patches;
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CUDA, m) {
    m.impl("normalize_patchify", TORCH_BOX(&vila_mc::normalize_patchify));
}
