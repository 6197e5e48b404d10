// Rows that a block moves from one place to another.
#pragma once

#include "simt.cuh"

namespace vila_mc {

constexpr int kCopyThreads = 128;  // of the blocks that copy
constexpr int kInFlight = 4;       // loads of a thread before its first store waits for one

/// For every i < width: store(i, load(i)), with several loads on their way at once.
///
/// Left to a plain loop the compiler stores each number before it loads the next, as both may lie
/// in the same memory for all it knows.
template <class V, class Load, class Store>
__device__ __forceinline__ void copy_row(int width, Load load, Store store) {
    for (int first = threadIdx.x; first < width; first += kInFlight * kCopyThreads) {
        V held[kInFlight];
#pragma unroll
        for (int k = 0; k < kInFlight; ++k)
            if (first + k * kCopyThreads < width) held[k] = load(first + k * kCopyThreads);
#pragma unroll
        for (int k = 0; k < kInFlight; ++k)
            if (first + k * kCopyThreads < width) store(first + k * kCopyThreads, held[k]);
    }
}

/// Zeros for `width` numbers from `to` on.
template <class V>
__device__ __forceinline__ void clear_row(V* to, int width) {
#pragma unroll 1
    for (int i = threadIdx.x; i < width; i += kCopyThreads) to[i] = V{};
}

}  // namespace vila_mc
