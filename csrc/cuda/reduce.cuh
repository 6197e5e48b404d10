// Sums over the threads of a block.
#pragma once

#include "simt.cuh"

namespace vila_mc {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;
constexpr uint32_t kAllLanes = ~0u;

/// The sum of `value` over the block, for every thread. Whole warps only.
///
/// `scratch` holds kMaxWarps floats. Calls take turns between two of them, so that one barrier a
/// call is enough: nobody writes a scratch again before all have passed the other one's barrier.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
    for (int bits = kWarpSize / 2; bits > 0; bits /= 2)
        value += __shfl_xor_sync(kAllLanes, value, bits);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = lane < int(blockDim.x / kWarpSize) ? scratch[lane] : 0.0f;
#pragma unroll
    for (int bits = kWarpSize / 2; bits > 0; bits /= 2)
        value += __shfl_xor_sync(kAllLanes, value, bits);
    return value;
}

}  // namespace vila_mc
