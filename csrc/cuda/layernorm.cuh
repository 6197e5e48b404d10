// downsample_layernorm: gather and LayerNorm in one pass.
//
// A block keeps one token in registers, kItems channels a thread, and goes on to the next token
// with weight and bias still in shared memory: x is read once and y is written once.
#pragma once

#include <algorithm>

#include "numbers.cuh"
#include "patch_blocks.cuh"
#include "reduce.cuh"

namespace vila_mc {

constexpr int kItems = 32;
constexpr int kMaxNormThreads = 384;  // leaves each thread the registers for kItems
constexpr int kMaxNormWidth = kItems * kMaxNormThreads;

inline int norm_threads(int token_width) {
    const int busy = (token_width + kItems - 1) / kItems;
    return (busy + kWarpSize - 1) / kWarpSize * kWarpSize;
}

template <class T>
struct NormForward {
    const T* patches;  // [images, patches, width]
    const T* weight;   // [channels]
    const T* bias;     // [channels]
    T* normal;         // [rows, channels]
    float* mean;       // [rows]
    float* rstd;       // [rows]
    int64_t rows;
    PatchBlocks patch_blocks;
    float epsilon;
};

// kLoad numbers are loaded at once: 16 bytes' worth, or 1 where addresses do not allow it.
template <class T, int kLoad>
__global__ void __launch_bounds__(kMaxNormThreads) norm_forward_kernel(NormForward<T> a) {
    constexpr int kVectors = kItems / kLoad;
    SIMT_SHARED(float, sum_scratch, kMaxWarps);
    SIMT_SHARED(float, square_scratch, kMaxWarps);
    const int width = a.patch_blocks.channels();
    const auto first_of = [](int v) { return int(v * blockDim.x + threadIdx.x) * kLoad; };

    T* const weight = simt::dynamic_shared<T>();  // registers are for the token
    T* const bias = weight + width;
    for (int i = threadIdx.x * kLoad; i < width; i += blockDim.x * kLoad) {
        store<T, kLoad>(weight + i, load<T, kLoad>(a.weight + i));  // read back by the same thread:
        store<T, kLoad>(bias + i, load<T, kLoad>(a.bias + i));      // no barrier
    }

    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const PatchBlocks::Token token = a.patch_blocks.token(row);
        Vector<T, kLoad> x[kVectors];
        float sum = 0.0f;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            x[v] = zeros<T, kLoad>();
            if (first_of(v) >= width) continue;
            const PatchBlocks::Channel channel = a.patch_blocks.channel(first_of(v));
            if (token.has(channel)) x[v] = load<T, kLoad>(a.patches + token.first + channel.offset);
#pragma unroll
            for (int k = 0; k < kLoad; ++k) sum += to_float(x[v].at[k]);
        }
        const float mean = block_sum(sum, sum_scratch) / width;

        float squares = 0.0f;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (first_of(v) >= width) continue;
#pragma unroll
            for (int k = 0; k < kLoad; ++k) {
                const float off = to_float(x[v].at[k]) - mean;
                squares += off * off;
            }
        }
        const float rstd = rsqrtf(block_sum(squares, square_scratch) / width + a.epsilon);

#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (first_of(v) >= width) continue;
            const Vector<T, kLoad> gamma = load<T, kLoad>(weight + first_of(v));
            const Vector<T, kLoad> beta = load<T, kLoad>(bias + first_of(v));
            Vector<T, kLoad> y;
#pragma unroll
            for (int k = 0; k < kLoad; ++k) {
                const float normal = (to_float(x[v].at[k]) - mean) * rstd * to_float(gamma.at[k]) +
                                     to_float(beta.at[k]);
                y.at[k] = from_float<T>(normal);
            }
            store<T, kLoad>(a.normal + row * width + first_of(v), y);
        }
        if (threadIdx.x == 0) {
            a.mean[row] = mean;
            a.rstd[row] = rstd;
        }
    }
}

/// How many blocks share `rows` tokens. To start a block costs what weight and bias cost to read,
/// so once every multiprocessor has `least_each` of them, more come with `tokens_each` tokens only.
inline int64_t norm_blocks(int64_t rows, const simt::Room& room, int least_each, int tokens_each) {
    const int64_t busy = int64_t(room.multiprocessors) * least_each;
    return std::min({rows, room.blocks(), std::max(busy, rows / tokens_each)});
}

/// Returns CUDA's error code.
template <class T>
int launch_norm_forward(const NormForward<T>& a, simt::Stream stream) {
    if (a.rows == 0) return 0;
    const int width = a.patch_blocks.channels(), threads = norm_threads(width);
    const size_t shared = 2 * size_t(width) * sizeof(T);
    const auto launch = [&](auto kernel) {
        simt::Room room;
        const int refused = simt::make_room(kernel, threads, shared, room);
        if (refused != 0) return refused;
        const int64_t blocks = norm_blocks(a.rows, room, 4, 16);
        return simt::launch(kernel, dim3(unsigned(blocks)), dim3(threads), shared, stream, a);
    };
    constexpr int kLoad = kVectorBytes / sizeof(T);
    if (takes_vectors<T>(a.patch_blocks.width, {a.patches, a.weight, a.bias, a.normal}))
        return launch(norm_forward_kernel<T, kLoad>);
    return launch(norm_forward_kernel<T, 1>);
}

}  // namespace vila_mc
