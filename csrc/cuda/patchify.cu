// normalize_patchify on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include "device.h"
#include "patchify.cuh"

namespace vila_mc {
namespace {

Tensor normalize_patchify(const Tensor& given, const Tensor& given_table, int64_t patch) {
    if (given.dim() != 4 || given.size(1) != kChannels || given.scalar_type() != ScalarType::Byte)
        refuse("images are ", said(given), "; give Byte [n, 3, y, x].");
    const int64_t n = given.size(0), y = given.size(2), x = given.size(3);
    if (patch < 1 || patch > y || patch > x)
        refuse("images of ", y, " x ", x, " pixels hold no patch of ", patch, " pixels.");
    if (kChannels * patch * x > kMaxStrip)
        refuse("patches of ", patch, " pixels in images ", x, " wide want ", kChannels * patch * x,
               " bytes of shared memory; the CUDA kernel takes up to ", kMaxStrip,
               ". Use vila_mc.kernels.reference for wider ones.");
    check_like("table", given_table, given, {kChannels, kLevels}, given_table.scalar_type());
    const Tensor images = torch::stable::contiguous(given);
    const Tensor table = torch::stable::contiguous(given_table);
    const int64_t rows = y / patch, cols = x / patch;
    small("rows of patches", n * rows);
    Tensor patches = torch::stable::new_empty(table, {n, rows * cols, kChannels * patch * patch});
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
