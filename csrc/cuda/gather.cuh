// downsample_gather: tokens are copies of patches, so the kernels move bytes of any format.
#pragma once

#include "copy.cuh"
#include "numbers.cuh"
#include "patch_blocks.cuh"

namespace vila_mc {

// One block for each token. V is what a thread moves at once, and patch_blocks.width counts in V.
template <class V>
__global__ void __launch_bounds__(kCopyThreads)
    gather_forward_kernel(const V* __restrict__ patches, V* __restrict__ tokens,
                          PatchBlocks patch_blocks) {
    const PatchBlocks::Token token = patch_blocks.token(blockIdx.x);
    const int width = patch_blocks.channels();
    V* const token_values = tokens + int64_t(blockIdx.x) * width;
    copy_row<V>(
        width,
        [&](int i) {
            const PatchBlocks::Channel channel = patch_blocks.channel(i);
            return token.has(channel) ? patches[token.first + channel.offset] : V{};
        },
        [&](int i, const V& value) { token_values[i] = value; });
}

// Every patch stands in exactly one token; the class token in none, so its gradient is zero.
template <class V>
__global__ void __launch_bounds__(kCopyThreads)
    gather_backward_kernel(const V* __restrict__ tokens_grad, V* __restrict__ patches_grad,
                           PatchBlocks patch_blocks) {
    const PatchBlocks::Token token = patch_blocks.token(blockIdx.x);
    const int width = patch_blocks.channels();
    const V* const token_values = tokens_grad + int64_t(blockIdx.x) * width;
    copy_row<V>(
        width, [&](int i) { return token.has(patch_blocks.channel(i)) ? token_values[i] : V{}; },
        [&](int i, const V& value) {
            const PatchBlocks::Channel channel = patch_blocks.channel(i);
            if (token.has(channel)) patches_grad[token.first + channel.offset] = value;
        });
    if (patch_blocks.starts_image(blockIdx.x))
        clear_row(patches_grad + token.image, patch_blocks.prefix * patch_blocks.width);
}

/// The same patch_blocks with their width in units of V.
template <class V>
PatchBlocks counted_in(PatchBlocks patch_blocks, int element_bytes) {
    patch_blocks.width = int(int64_t(patch_blocks.width) * element_bytes / int64_t(sizeof(V)));
    return patch_blocks;
}

/// [images, patches, width] -> [images, tokens, channels]. Returns CUDA's error code.
inline int launch_gather_forward(const void* patches, void* tokens, int element_bytes,
                                 int64_t images, PatchBlocks patch_blocks, simt::Stream stream) {
    const int64_t rows = images * patch_blocks.tokens();
    if (rows == 0 || patch_blocks.width == 0) return 0;
    return with_widest(
        int64_t(patch_blocks.width) * element_bytes, {patches, tokens}, [&](auto unit) {
            using V = decltype(unit);
            return simt::launch(gather_forward_kernel<V>, dim3(unsigned(rows)), dim3(kCopyThreads),
                                0, stream, static_cast<const V*>(patches), static_cast<V*>(tokens),
                                counted_in<V>(patch_blocks, element_bytes));
        });
}

/// [images, tokens, channels] -> [images, patches, width], every element written.
inline int launch_gather_backward(const void* tokens_grad, void* patches_grad, int element_bytes,
                                  int64_t images, PatchBlocks patch_blocks, simt::Stream stream) {
    const int64_t rows = images * patch_blocks.tokens();
    if (rows == 0 || patch_blocks.width == 0) return 0;
    return with_widest(
        int64_t(patch_blocks.width) * element_bytes, {tokens_grad, patches_grad}, [&](auto unit) {
            using V = decltype(unit);
            return simt::launch(gather_backward_kernel<V>, dim3(unsigned(rows)), dim3(kCopyThreads),
                                0, stream, static_cast<const V*>(tokens_grad),
                                static_cast<V*>(patches_grad),
                                counted_in<V>(patch_blocks, element_bytes));
        });
}

}  // namespace vila_mc
