// The only door through which kernels reach CUDA. nvcc finds CUDA behind it; any C++17 compiler
// finds the emulator of csrc/emulation/, which runs the same source on a CPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SIMT_SHARED(T, name, count) __shared__ T name[count]

namespace simt {

using Stream = cudaStream_t;

/// The shared memory whose size the launch chooses, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char simt_dynamic_shared[];
    return reinterpret_cast<T*>(simt_dynamic_shared);
}

/// How many blocks of a kernel the current device runs at once.
struct Room {
    int multiprocessors = 0, blocks_each = 0;

    int64_t blocks() const { return int64_t(multiprocessors) * blocks_each; }
};

/// Fills `room`, after asking for the shared memory of the launch; returns CUDA's error code.
template <class... P>
int make_room(void (*kernel)(P...), int threads, size_t shared_bytes, Room& room) {
    constexpr size_t kAlwaysGranted = 40 << 10;  // what the kernel declares itself counts as well
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess && shared_bytes > kAlwaysGranted)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     int(shared_bytes));
    if (error == cudaSuccess)
        error =
            cudaDeviceGetAttribute(&room.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&room.blocks_each, kernel, threads,
                                                              shared_bytes);
    return int(error);
}

/// Starts a kernel; returns CUDA's error code, 0 for success.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
           A... arguments) {
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(arguments)...);
    return int(cudaGetLastError());
}

}  // namespace simt

#else

#include "../emulation/simt.h"

#endif
