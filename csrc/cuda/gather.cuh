// downsample_gather: merged tokens are copies of patches, so the kernels move bytes of any format.
#pragma once

#include "neighbours.cuh"
#include "numbers.cuh"

namespace vila_mc {

constexpr int kGatherThreads = 128;

// One block for each token. V is what a thread moves at once, and neighbours.width counts in V.
template <class V>
__global__ void __launch_bounds__(kGatherThreads)
    gather_forward_kernel(const V* __restrict__ patches, V* __restrict__ tokens,
                          Neighbours neighbours) {
    const int64_t row = blockIdx.x;
    const int width = neighbours.merged_width();
    const Neighbours::Token token = neighbours.token(row);
#pragma unroll 4
    for (int i = threadIdx.x; i < width; i += kGatherThreads) {
        const Neighbours::Channel channel = neighbours.channel(i);
        tokens[row * width + i] = token.has(channel) ? patches[token.first + channel.offset] : V{};
    }
}

// Every patch stands in exactly one token; the class token in none, so its gradient is zero.
template <class V>
__global__ void __launch_bounds__(kGatherThreads)
    gather_backward_kernel(const V* __restrict__ tokens_grad, V* __restrict__ patches_grad,
                           Neighbours neighbours) {
    const int64_t row = blockIdx.x;
    const int width = neighbours.merged_width();
    const Neighbours::Token token = neighbours.token(row);
#pragma unroll 4
    for (int i = threadIdx.x; i < width; i += kGatherThreads) {
        const Neighbours::Channel channel = neighbours.channel(i);
        if (token.has(channel))
            patches_grad[token.first + channel.offset] = tokens_grad[row * width + i];
    }
    if (!neighbours.starts_image(row)) return;
    for (int i = threadIdx.x; i < neighbours.prefix * neighbours.width; i += kGatherThreads)
        patches_grad[token.image + i] = V{};
}

/// The same neighbours with their width in units of V.
template <class V>
Neighbours counted_in(Neighbours neighbours, int element_bytes) {
    neighbours.width = int(int64_t(neighbours.width) * element_bytes / int64_t(sizeof(V)));
    return neighbours;
}

/// [images, patches, width] -> [images, tokens, merged width]. Returns CUDA's error code.
inline int launch_gather_forward(const void* patches, void* tokens, int element_bytes,
                                 int64_t images, Neighbours neighbours, simt::Stream stream) {
    const int64_t rows = images * neighbours.tokens();
    if (rows == 0 || neighbours.width == 0) return 0;
    return with_widest(
        int64_t(neighbours.width) * element_bytes, {patches, tokens}, [&](auto unit) {
            using V = decltype(unit);
            return simt::launch(gather_forward_kernel<V>, dim3(unsigned(rows)),
                                dim3(kGatherThreads), 0, stream, static_cast<const V*>(patches),
                                static_cast<V*>(tokens), counted_in<V>(neighbours, element_bytes));
        });
}

/// [images, tokens, merged width] -> [images, patches, width], every element written.
inline int launch_gather_backward(const void* tokens_grad, void* patches_grad, int element_bytes,
                                  int64_t images, Neighbours neighbours, simt::Stream stream) {
    const int64_t rows = images * neighbours.tokens();
    if (rows == 0 || neighbours.width == 0) return 0;
    return with_widest(
        int64_t(neighbours.width) * element_bytes, {tokens_grad, patches_grad}, [&](auto unit) {
            using V = decltype(unit);
            return simt::launch(gather_backward_kernel<V>, dim3(unsigned(rows)),
                                dim3(kGatherThreads), 0, stream, static_cast<const V*>(tokens_grad),
                                static_cast<V*>(patches_grad),
                                counted_in<V>(neighbours, element_bytes));
        });
}

}  // namespace vila_mc
