// splice_visual: visual tokens into the rows of text embeddings, or into a shard of them.
#pragma once

#include "copy.cuh"
#include "numbers.cuh"

namespace vila_mc {

/// Where position `s` of row `b` lies in text [rows, positions, h] or [positions, rows, h].
///
/// The text may be a shard: `positions` of them from `first_position` on of a longer sequence.
struct Sequence {
    int64_t rows, positions, first_position;
    bool is_sequence_first;

    __host__ __device__ int64_t embeddings() const { return rows * positions; }

    /// Index of an embedding; -1 if it belongs to another shard.
    __device__ __forceinline__ int64_t find(int64_t row, int64_t position) const {
        const int64_t local = position - first_position;
        if (row < 0 || row >= rows || local < 0 || local >= positions) return -1;
        return is_sequence_first ? local * rows + row : row * positions + local;
    }
};

/// Visual tokens [images, each] and where the images start.
struct VisualTokens {
    const int64_t* starts;  // [images, 2]: row and first position
    int64_t images;
    int each;

    __host__ __device__ int64_t count() const { return images * each; }

    __device__ __forceinline__ int64_t find(const Sequence& sequence, int64_t token) const {
        const int64_t image = token / each;
        return sequence.find(starts[2 * image], starts[2 * image + 1] + token % each);
    }
};

constexpr int kText = -1;  // in a map: no visual token stands here

// map [embeddings], kText beforehand -> the visual token of each embedding.
static __global__ void __launch_bounds__(kCopyThreads)
    map_visual_tokens(VisualTokens tokens, Sequence sequence, int* __restrict__ map) {
    const int64_t token = int64_t(blockIdx.x) * kCopyThreads + threadIdx.x;
    if (token >= tokens.count()) return;
    const int64_t found = tokens.find(sequence, token);
    if (found >= 0) map[found] = int(token);
}

static __global__ void __launch_bounds__(kCopyThreads)
    map_only_text(int64_t embeddings, int* __restrict__ map) {
    const int64_t embedding = int64_t(blockIdx.x) * kCopyThreads + threadIdx.x;
    if (embedding < embeddings) map[embedding] = kText;
}

// One block for each embedding; widths count in V, as in gather.cuh.
template <class V>
__global__ void __launch_bounds__(kCopyThreads)
    splice_kernel(const V* text, const V* visual, const int* map, V* spliced, int width) {
    const int64_t row = blockIdx.x;
    const int token = map[row];
    const V* const from = token == kText ? text + row * width : visual + int64_t(token) * width;
    copy_row<V>(
        width, [&](int i) { return from[i]; },
        [&](int i, const V& value) { spliced[row * width + i] = value; });
}

template <class V>
__global__ void __launch_bounds__(kCopyThreads)
    splice_text_grad_kernel(const V* grad, const int* map, V* text_grad, int width) {
    const int64_t row = blockIdx.x;
    if (map[row] == kText)
        copy_row<V>(
            width, [&](int i) { return grad[row * width + i]; },
            [&](int i, const V& value) { text_grad[row * width + i] = value; });
    else
        clear_row(text_grad + row * width, width);
}

// One block for each visual token. What stands in another shard gets zeros from this one.
template <class V>
__global__ void __launch_bounds__(kCopyThreads)
    splice_visual_grad_kernel(const V* grad, VisualTokens tokens, Sequence sequence, V* visual_grad,
                              int width) {
    const int64_t token = blockIdx.x;
    const int64_t found = tokens.find(sequence, token);
    if (found >= 0)
        copy_row<V>(
            width, [&](int i) { return grad[found * width + i]; },
            [&](int i, const V& value) { visual_grad[token * width + i] = value; });
    else
        clear_row(visual_grad + token * width, width);
}

inline dim3 splice_blocks(int64_t threads) {
    return dim3(unsigned((threads + kCopyThreads - 1) / kCopyThreads));
}

/// Fills map [embeddings]. Returns CUDA's error code, as all launches do.
inline int launch_splice_map(VisualTokens tokens, Sequence sequence, int* map,
                             simt::Stream stream) {
    if (sequence.embeddings() == 0) return 0;
    const int refused = simt::launch(map_only_text, splice_blocks(sequence.embeddings()),
                                     dim3(kCopyThreads), 0, stream, sequence.embeddings(), map);
    if (refused != 0 || tokens.count() == 0) return refused;
    return simt::launch(map_visual_tokens, splice_blocks(tokens.count()), dim3(kCopyThreads), 0,
                        stream, tokens, sequence, map);
}

inline int launch_splice_forward(const void* text, const void* visual, const int* map,
                                 void* spliced, int64_t embeddings, int64_t row_bytes,
                                 simt::Stream stream) {
    if (embeddings == 0 || row_bytes == 0) return 0;
    return with_widest(row_bytes, {text, visual, spliced}, [&](auto unit) {
        using V = decltype(unit);
        return simt::launch(splice_kernel<V>, dim3(unsigned(embeddings)), dim3(kCopyThreads), 0,
                            stream, static_cast<const V*>(text), static_cast<const V*>(visual), map,
                            static_cast<V*>(spliced), int(row_bytes / sizeof(V)));
    });
}

inline int launch_splice_text_grad(const void* grad, const int* map, void* text_grad,
                                   int64_t embeddings, int64_t row_bytes, simt::Stream stream) {
    if (embeddings == 0 || row_bytes == 0) return 0;
    return with_widest(row_bytes, {grad, text_grad}, [&](auto unit) {
        using V = decltype(unit);
        return simt::launch(splice_text_grad_kernel<V>, dim3(unsigned(embeddings)),
                            dim3(kCopyThreads), 0, stream, static_cast<const V*>(grad), map,
                            static_cast<V*>(text_grad), int(row_bytes / sizeof(V)));
    });
}

inline int launch_splice_visual_grad(const void* grad, VisualTokens tokens, Sequence sequence,
                                     void* visual_grad, int64_t row_bytes, simt::Stream stream) {
    if (tokens.count() == 0 || row_bytes == 0) return 0;
    return with_widest(row_bytes, {grad, visual_grad}, [&](auto unit) {
        using V = decltype(unit);
        return simt::launch(splice_visual_grad_kernel<V>, dim3(unsigned(tokens.count())),
                            dim3(kCopyThreads), 0, stream, static_cast<const V*>(grad), tokens,
                            sequence, static_cast<V*>(visual_grad), int(row_bytes / sizeof(V)));
    });
}

}  // namespace vila_mc
