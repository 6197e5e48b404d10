// normalize_patchify: uint8 images -> normalised patches in one pass.
#pragma once

#include "numbers.cuh"

namespace vila_mc {

constexpr int kPatchifyThreads = 256;
constexpr int kChannels = 3;
constexpr int kLevels = 256;
constexpr int kMaxStrip = 150 << 10;  // bytes of pixels; sm_80 has 163 KiB of shared memory a block

template <class T>
struct Patchify {
    const uint8_t* images;  // [images, 3, height, width]
    const T* table;         // [3, 256]: the normalised value of every level of every channel
    T* patches;             // [images, rows * cols, 3 * patch * patch], channels (c, dy, dx)
    int height, width, patch;

    __host__ __device__ int rows() const { return height / patch; }
    __host__ __device__ int cols() const { return width / patch; }
    __host__ __device__ int strip() const { return kChannels * patch * width; }  // pixels
};

// One block for each row of patches: its pixels come in by 16 bytes, wait in shared memory, and
// leave as patches, which lie one after the other. Pixels beyond the last whole patch are dropped.
template <class T, int kLoad, int kStore>
__global__ void __launch_bounds__(kPatchifyThreads) patchify_kernel(Patchify<T> a) {
    uint8_t* const strip = simt::dynamic_shared<uint8_t>();  // [3, patch, width]
    SIMT_SHARED(T, table, kChannels * kLevels);
    const int row = blockIdx.x % a.rows();
    const int64_t image = blockIdx.x / a.rows();

    for (int i = threadIdx.x; i < kChannels * kLevels; i += kPatchifyThreads) table[i] = a.table[i];
    const int plane = a.patch * a.width;  // pixels of one channel of the strip; contiguous
    for (int i = threadIdx.x * kLoad; i < a.strip(); i += kPatchifyThreads * kLoad) {
        const int64_t channel = image * kChannels + i / plane;
        const int64_t from = (channel * a.height + row * a.patch) * a.width + i % plane;
        store<uint8_t, kLoad>(strip + i, load<uint8_t, kLoad>(a.images + from));
    }
    __syncthreads();

    const int side = a.patch * a.patch, each = kChannels * side, count = a.cols() * each;
    T* const patches = a.patches + (image * a.rows() + row) * count;
    for (int i = threadIdx.x * kStore; i < count; i += kPatchifyThreads * kStore) {
        // Divide once and count on: eight divisions a number would take longer than the memory.
        int patch = i / each, channel = i % each / side, dy = i % side / a.patch, dx = i % a.patch;
        Vector<T, kStore> values;
#pragma unroll
        for (int k = 0; k < kStore; ++k) {
            const uint8_t level = strip[channel * plane + dy * a.width + patch * a.patch + dx];
            values.at[k] = table[channel * kLevels + level];
            if (++dx < a.patch) continue;
            dx = 0;
            if (++dy < a.patch) continue;
            dy = 0;
            if (++channel < kChannels) continue;
            channel = 0;
            ++patch;
        }
        store<T, kStore>(patches + i, values);
    }
}

/// Returns CUDA's error code.
template <class T>
int launch_patchify(const Patchify<T>& a, int64_t images, simt::Stream stream) {
    const int64_t blocks = images * a.rows();
    if (blocks == 0 || a.cols() == 0) return 0;
    const auto launch = [&](auto kernel) {
        simt::Room room;  // its number does not matter: a strip is all a block does
        const int refused = simt::make_room(kernel, kPatchifyThreads, size_t(a.strip()), room);
        if (refused != 0) return refused;
        return simt::launch(kernel, dim3(unsigned(blocks)), dim3(kPatchifyThreads),
                            size_t(a.strip()), stream, a);
    };
    constexpr int kStore = kVectorBytes / sizeof(T);
    const int64_t count = int64_t(a.cols()) * kChannels * a.patch * a.patch;
    const bool reads_wide = takes_vectors<uint8_t>(a.patch * a.width, {a.images}) &&
                            takes_vectors<uint8_t>(int64_t(a.height) * a.width, {a.images});
    const bool writes_wide = takes_vectors<T>(count, {a.patches});
    if (reads_wide && writes_wide) return launch(patchify_kernel<T, kVectorBytes, kStore>);
    return launch(patchify_kernel<T, 1, 1>);
}

}  // namespace vila_mc
