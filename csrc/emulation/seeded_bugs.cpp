// Small kernels with a mistake each, and the same without: the checks must tell them apart.
#include <cstdlib>
#include <cstring>

#include "../cuda/numbers.cuh"
#include "case.h"

namespace vila_mc {
namespace {

constexpr int kThreads = 64;

__global__ void barrier_missing(float* out, const float*) {
    SIMT_SHARED(float, values, kThreads);
    values[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}
__global__ void barrier_present(float* out, const float*) {
    SIMT_SHARED(float, values, kThreads);
    for (int round = 0; round < 3; ++round) {
        values[threadIdx.x] = float(threadIdx.x);
        __syncthreads();
        out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
        __syncthreads();
    }
}
__global__ void second_barrier_missing(float* out, const float*) {
    SIMT_SHARED(float, values, kThreads);
    for (int round = 0; round < 3; ++round) {
        values[threadIdx.x] = float(round);
        __syncthreads();
        out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
    }
}
__global__ void barriers_diverge(float* out, const float*) {
    if (threadIdx.x < 40)
        __syncthreads();
    else
        __syncthreads_or(1);
    out[threadIdx.x] = 1.0f;
}
__global__ void warp_barrier_missing(float* out, const float*) {
    SIMT_SHARED(float, values, kThreads);
    values[threadIdx.x] = float(threadIdx.x);
    const float one = __shfl_xor_sync(~0u, 1.0f, 1);  // meets, but orders no memory
    out[threadIdx.x] = values[threadIdx.x ^ 1] * one;
}
__global__ void warp_barrier_present(float* out, const float*) {
    SIMT_SHARED(float, values, kThreads);
    values[threadIdx.x] = float(threadIdx.x);
    __syncwarp();
    out[threadIdx.x] = values[threadIdx.x ^ 1];
}
__global__ void lane_missing(float* out, const float*) {
    if (threadIdx.x == 5) return;
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}
__global__ void lane_outside_mask(float* out, const float*) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}
__global__ void shared_overrun(float* out, const float*) {
    SIMT_SHARED(float, values, kThreads);
    values[threadIdx.x + 1] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}
__global__ void dynamic_shared_overrun(float* out, const float*) {
    float* const values = simt::dynamic_shared<float>();
    values[threadIdx.x + 1] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}
__global__ void global_overrun(float* out, const float*) { out[threadIdx.x + 1] = 1.0f; }
__global__ void vector_misaligned(float* out, const float* in) {
    out[threadIdx.x] = load<float, 4>(in + 1).at[0];
}
__global__ void shared_unwritten(float* out, const float*) {
    SIMT_SHARED(float, values, kThreads);
    if (threadIdx.x > 0) values[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}
__global__ void blocks_add_plainly(float* out, const float*) {
    out[threadIdx.x] = blockIdx.x == 0 ? 1.0f : out[threadIdx.x] + 1.0f;
}
__global__ void blocks_add_atomically(float* out, const float* in) {
    atomicAdd(&out[threadIdx.x], in[0]);
}

struct Bug {
    const char* name;
    void (*kernel)(float*, const float*);
    int blocks;
};

constexpr Bug kBugs[] = {
    {"barrier_missing", barrier_missing, 1},
    {"barrier_present", barrier_present, 1},
    {"second_barrier_missing", second_barrier_missing, 1},
    {"barriers_diverge", barriers_diverge, 1},
    {"warp_barrier_missing", warp_barrier_missing, 1},
    {"warp_barrier_present", warp_barrier_present, 1},
    {"lane_missing", lane_missing, 1},
    {"lane_outside_mask", lane_outside_mask, 1},
    {"shared_overrun", shared_overrun, 1},
    {"dynamic_shared_overrun", dynamic_shared_overrun, 1},
    {"global_overrun", global_overrun, 1},
    {"vector_misaligned", vector_misaligned, 1},
    {"shared_unwritten", shared_unwritten, 1},
    {"blocks_add_plainly", blocks_add_plainly, 2},
    {"blocks_add_atomically", blocks_add_atomically, 2},
};

}  // namespace

/// Tensors: `in`, and `out` of 64 floats.
int run_seeded_bug(const Case& c) {
    for (const Bug& bug : kBugs)
        if (c.op() == bug.name)
            return simt::launch(bug.kernel, dim3(bug.blocks), dim3(kThreads),
                                kThreads * sizeof(float), nullptr, c.tensor<float>("out"),
                                c.tensor<const float>("in"));
    return -1;
}

}  // namespace vila_mc
