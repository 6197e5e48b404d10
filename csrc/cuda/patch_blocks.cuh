// Which patch a channel of a token comes from.
#pragma once

#include "simt.cuh"

namespace vila_mc {

/// Patches [n, prefix + grid * grid, width], seen as [n, side * side, factor**2 * width] tokens.
///
/// Channels are ordered (dy, dx, e); a grid that `factor` does not divide ends in zeros at the
/// bottom and right. The prefix is the class token, which belongs to no token.
struct PatchBlocks {
    int grid, prefix, width, factor;

    __host__ __device__ int side() const { return (grid + factor - 1) / factor; }
    __host__ __device__ int tokens() const { return side() * side(); }
    __host__ __device__ int patches() const { return prefix + grid * grid; }
    __host__ __device__ int channels() const { return factor * factor * width; }

    /// Channel of a token: patch (dy, dx) of the block and the offset from its first patch.
    struct Channel {
        int dy, dx, offset;
    };
    __device__ __forceinline__ Channel channel(int number) const {
        const int patch = number / width, dy = patch / factor, dx = patch % factor;
        return {dy, dx, (dy * grid + dx) * width + number % width};
    }

    /// Token of a batch: its image's first element, its first patch, and how far the grid reaches.
    struct Token {
        int64_t image, first;
        int rows, cols;

        __device__ __forceinline__ bool has(const Channel& channel) const {
            return channel.dy < rows && channel.dx < cols;
        }
    };
    __device__ __forceinline__ Token token(int64_t row) const {
        const int64_t image = row / tokens() * patches() * width;
        const int number = int(row % tokens()), y = number / side() * factor,
                  x = number % side() * factor;
        return {image, image + int64_t(prefix + y * grid + x) * width, grid - y, grid - x};
    }

    __device__ __forceinline__ bool starts_image(int64_t row) const { return row % tokens() == 0; }
};

}  // namespace vila_mc
