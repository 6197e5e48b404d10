// downsample_gather: merged tokens are copies of patches, so the kernels move bytes of any format.
#pragma once

#include "copy.cuh"
#include "neighbours.cuh"
#include "numbers.cuh"

namespace vila_mc {

// One block for each token. V is what a thread moves at once, and neighbours.width counts in V.
template <class V>
__global__ void __launch_bounds__(kCopyThreads)
    gather_forward_kernel(const V* __restrict__ patches, V* __restrict__ tokens,
                          Neighbours neighbours) {
    const Neighbours::Token token = neighbours.token(blockIdx.x);
    const int width = neighbours.merged_width();
    V* const merged = tokens + int64_t(blockIdx.x) * width;
    copy_row<V>(
        width,
        [&](int i) {
            const Neighbours::Channel channel = neighbours.channel(i);
            return token.has(channel) ? patches[token.first + channel.offset] : V{};
        },
        [&](int i, const V& value) { merged[i] = value; });
}

// Every patch stands in exactly one token; the class token in none, so its gradient is zero.
template <class V>
__global__ void __launch_bounds__(kCopyThreads)
    gather_backward_kernel(const V* __restrict__ tokens_grad, V* __restrict__ patches_grad,
                           Neighbours neighbours) {
    const Neighbours::Token token = neighbours.token(blockIdx.x);
    const int width = neighbours.merged_width();
    const V* const merged = tokens_grad + int64_t(blockIdx.x) * width;
    copy_row<V>(
        width, [&](int i) { return token.has(neighbours.channel(i)) ? merged[i] : V{}; },
        [&](int i, const V& value) {
            const Neighbours::Channel channel = neighbours.channel(i);
            if (token.has(channel)) patches_grad[token.first + channel.offset] = value;
        });
    if (neighbours.starts_image(blockIdx.x))
        clear_row(patches_grad + token.image, neighbours.prefix * neighbours.width);
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
            return simt::launch(gather_forward_kernel<V>, dim3(unsigned(rows)), dim3(kCopyThreads),
                                0, stream, static_cast<const V*>(patches), static_cast<V*>(tokens),
                                counted_in<V>(neighbours, element_bytes));
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
            return simt::launch(gather_backward_kernel<V>, dim3(unsigned(rows)), dim3(kCopyThreads),
                                0, stream, static_cast<const V*>(tokens_grad),
                                static_cast<V*>(patches_grad),
                                counted_in<V>(neighbours, element_bytes));
        });
}

}  // namespace vila_mc
