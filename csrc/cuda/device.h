// What every operation on CUDA tensors does around its kernel: device, stream, sizes, errors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <climits>

#include "../checks.h"
#include "numbers.cuh"
#include "patch_blocks.cuh"

namespace vila_mc {

/// Makes a tensor's device the current one while it lives, and holds torch's stream on it.
class OnDevice {
  public:
    explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
        // The stable Stream gives its handle from torch 2.13 on only.
        TORCH_ERROR_CODE_CHECK(
            aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
    }

    cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }

  private:
    torch::stable::accelerator::DeviceGuard guard_;
    void* stream_ = nullptr;
};

inline void check_launch(const char* op, int error) {
    if (error != 0) refuse(op, ": ", cudaGetErrorString(cudaError_t(error)), ".");
}

/// A size that a kernel counts in 32 bits.
inline int small(const char* name, int64_t size) {
    if (size > INT_MAX)
        refuse(name, " come to ", size, "; a CUDA kernel takes up to ", INT_MAX,
               ". Use a smaller microbatch.");
    return int(size);
}

inline PatchBlocks patch_blocks_of(const Blocks& blocks) {
    small("tokens of all images", blocks.images * blocks.tokens());
    small("numbers of an image", blocks.patches() * blocks.width);
    return {int(blocks.grid), int(blocks.cls), int(blocks.width), int(blocks.factor)};
}

/// Calls `go` with a number of the format that `dtype` names.
template <class Go>
void with_cuda_float(ScalarType dtype, Go go) {
    if (dtype == ScalarType::Float) return go(float{});
    if (dtype == ScalarType::BFloat16) return go(bf16{});
    if (dtype == ScalarType::Half) return go(half{});
    refuse("the number format is ", torch::headeronly::toString(dtype),
           "; on CUDA give Float, BFloat16 or Half.");
}

template <class T>
const T* in(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* out(Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace vila_mc
