// The gradient of downsample_layernorm: patches are gathered again, so forward keeps no tokens.
//
// dweight and dbias are summed in two stages and a fixed order: each block over its tokens, in
// registers, then over the blocks. Equal runs on one device give equal bits; atomics would not.
#pragma once

#include "layernorm.cuh"

namespace vila_mc {

template <class T>
struct NormBackward {
    const T* grad;      // [rows, channels]
    const T* patches;   // [images, patches, width]
    const T* weight;    // [channels]
    const float* mean;  // [rows]
    const float* rstd;  // [rows]
    T* patches_grad;    // as patches; every element is written
    float* partial;     // [blocks, 2, channels]: what each block adds to dweight and dbias
    T* weight_grad;     // [channels]
    T* bias_grad;       // [channels]
    int64_t rows;
    PatchBlocks patch_blocks;
};

template <class T, int kLoad>
__global__ void __launch_bounds__(kMaxNormThreads) norm_backward_kernel(NormBackward<T> a) {
    constexpr int kVectors = kItems / kLoad;
    constexpr int kFloats = kLoad < 4 ? kLoad : 4;
    SIMT_SHARED(float, sum_scratch, kMaxWarps);
    SIMT_SHARED(float, product_scratch, kMaxWarps);
    T* const weight = simt::dynamic_shared<T>();  // [channels]: registers are for the sums
    const int width = a.patch_blocks.channels();
    const auto first_of = [](int v) { return int(v * blockDim.x + threadIdx.x) * kLoad; };

    float weight_grad[kItems] = {}, bias_grad[kItems] = {};
#pragma unroll
    for (int v = 0; v < kVectors; ++v)  // each thread reads back what it wrote: no barrier
        if (first_of(v) < width)
            store<T, kLoad>(weight + first_of(v), load<T, kLoad>(a.weight + first_of(v)));

    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const PatchBlocks::Token token = a.patch_blocks.token(row);
        const float mean = a.mean[row], rstd = a.rstd[row];
        Vector<T, kLoad> x[kVectors], dy[kVectors];
        float sum = 0.0f, product = 0.0f;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (first_of(v) >= width) continue;
            const PatchBlocks::Channel channel = a.patch_blocks.channel(first_of(v));
            dy[v] = load<T, kLoad>(a.grad + row * width + first_of(v));
            x[v] = token.has(channel) ? load<T, kLoad>(a.patches + token.first + channel.offset)
                                      : zeros<T, kLoad>();
        }
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (first_of(v) >= width) continue;
            const Vector<T, kLoad> gamma = load<T, kLoad>(weight + first_of(v));
#pragma unroll
            for (int k = 0; k < kLoad; ++k) {
                const float upstream = to_float(dy[v].at[k]);
                const float normal = (to_float(x[v].at[k]) - mean) * rstd;
                weight_grad[v * kLoad + k] += upstream * normal;
                bias_grad[v * kLoad + k] += upstream;
                sum += upstream * to_float(gamma.at[k]);
                product += upstream * to_float(gamma.at[k]) * normal;
            }
        }
        sum = block_sum(sum, sum_scratch) / width;
        product = block_sum(product, product_scratch) / width;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (first_of(v) >= width) continue;
            const PatchBlocks::Channel channel = a.patch_blocks.channel(first_of(v));
            if (!token.has(channel)) continue;
            const Vector<T, kLoad> gamma = load<T, kLoad>(weight + first_of(v));
            Vector<T, kLoad> dx;
#pragma unroll
            for (int k = 0; k < kLoad; ++k) {
                const float normal = (to_float(x[v].at[k]) - mean) * rstd;
                const float scaled = to_float(dy[v].at[k]) * to_float(gamma.at[k]);
                dx.at[k] = from_float<T>((scaled - sum - normal * product) * rstd);
            }
            store<T, kLoad>(a.patches_grad + token.first + channel.offset, dx);
        }
        if (a.patch_blocks.starts_image(row))  // the class token is in no token
            for (int i = threadIdx.x; i < a.patch_blocks.prefix * a.patch_blocks.width;
                 i += blockDim.x)
                a.patches_grad[token.image + i] = from_float<T>(0.0f);
    }

    float* const partial = a.partial + int64_t(blockIdx.x) * 2 * width;
#pragma unroll
    for (int i = 0; i < kItems; i += kFloats) {
        const int channel = first_of(i / kLoad) + i % kLoad;
        if (channel >= width) continue;
        Vector<float, kFloats> dweight, dbias;
#pragma unroll
        for (int k = 0; k < kFloats; ++k) {
            dweight.at[k] = weight_grad[i + k];
            dbias.at[k] = bias_grad[i + k];
        }
        store<float, kFloats>(partial + channel, dweight);
        store<float, kFloats>(partial + width + channel, dbias);
    }
}

constexpr int kSumRows = 8;  // warps of a block, each over every kSumRows-th part

/// Adds up partial [parts, columns]; the first half of the columns is dweight, the second dbias.
template <class T>
__global__ void __launch_bounds__(kWarpSize* kSumRows)
    sum_partial_kernel(const float* __restrict__ partial, T* __restrict__ weight_grad,
                       T* __restrict__ bias_grad, int parts, int width) {
    SIMT_SHARED(float, sums, kSumRows* kWarpSize);
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int column = blockIdx.x * kWarpSize + lane;
    float sum = 0.0f;
    if (column < 2 * width)
        for (int part = warp; part < parts; part += kSumRows)
            sum += partial[int64_t(part) * 2 * width + column];
    sums[warp * kWarpSize + lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= 2 * width) return;
    for (int other = 1; other < kSumRows; ++other) sum += sums[other * kWarpSize + lane];
    if (column < width)
        weight_grad[column] = from_float<T>(sum);
    else
        bias_grad[column - width] = from_float<T>(sum);
}

template <class T>
using NormBackwardKernel = void (*)(NormBackward<T>);

/// The kernel for these arguments: of 16-byte vectors if the addresses allow it.
template <class T>
NormBackwardKernel<T> choose_norm_backward(const NormBackward<T>& a) {
    constexpr int kLoad = kVectorBytes / sizeof(T);
    const bool wide =
        takes_vectors<T>(a.patch_blocks.width, {a.grad, a.patches, a.weight, a.patches_grad});
    return wide ? norm_backward_kernel<T, kLoad> : norm_backward_kernel<T, 1>;
}

/// How many blocks will run, and so how many parts `partial` must hold; or minus CUDA's error code.
///
/// A part costs as much traffic as three tokens, which is why blocks are fewer than forward's.
template <class T>
int64_t norm_backward_parts(const NormBackward<T>& a) {
    const int width = a.patch_blocks.channels();
    simt::Room room;
    const int refused = simt::make_room(choose_norm_backward(a), norm_threads(width),
                                        size_t(width) * sizeof(T), room);
    if (refused != 0) return -refused;
    return norm_blocks(a.rows, room, 1, 32);
}

/// Returns CUDA's error code. Without rows the gradients of weight and bias are zero.
template <class T>
int launch_norm_backward(const NormBackward<T>& a, int64_t parts, simt::Stream stream) {
    const int width = a.patch_blocks.channels();
    if (parts > 0) {
        const int refused =
            simt::launch(choose_norm_backward(a), dim3(unsigned(parts)), dim3(norm_threads(width)),
                         size_t(width) * sizeof(T), stream, a);
        if (refused != 0) return refused;
    }
    return simt::launch(sum_partial_kernel<T>, dim3((2 * width + kWarpSize - 1) / kWarpSize),
                        dim3(kWarpSize * kSumRows), 0, stream, a.partial, a.weight_grad,
                        a.bias_grad, int(parts), width);
}

}  // namespace vila_mc
