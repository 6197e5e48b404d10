// What the operations ask of their inputs, for the CPU and CUDA versions alike.
//
// vila_mc/kernels/ops.py says most of it as ValueError before it calls; these checks keep memory
// safe when an operation is called on its own, and know the limits of a device. Every message says
// what was given and what is allowed.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace vila_mc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] inline void refuse(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

inline std::string said(const Tensor& tensor) {
    std::ostringstream text;
    text << torch::headeronly::toString(tensor.scalar_type()) << " [";
    for (int64_t axis = 0; axis < tensor.dim(); ++axis)
        text << (axis ? ", " : "") << tensor.size(axis);
    text << "]";
    return text.str();
}

// The product of sizes, none of them negative. An empty tensor may have sizes whose product with
// the others overflows, so a 0 counts as a 1: what is too large is refused before anything is
// computed.
inline int64_t counted(const char* what, std::initializer_list<int64_t> sizes) {
    constexpr int64_t kMost = int64_t(1) << 40;  // numbers; no machine holds so many
    int64_t product = 1;
    bool is_empty = false;
    for (const int64_t size : sizes) {
        is_empty = is_empty || size == 0;
        if (size < 0 || product > kMost / std::max<int64_t>(size, 1))
            refuse(what, " would come to more than ", kMost, "; sizes this large cannot be used.");
        product *= std::max<int64_t>(size, 1);
    }
    return is_empty ? 0 : product;
}

// How patch features [n, cls + g * g, e] fold into tokens [n, side * side, factor * factor * e].
struct Blocks {
    int64_t images, grid, width, factor, cls;

    int64_t side() const { return (grid + factor - 1) / factor; }
    int64_t tokens() const { return side() * side(); }
    int64_t channels() const { return factor * factor * width; }
    int64_t patches() const { return cls + grid * grid; }
};

inline Blocks blocks_of_features(const Tensor& features, int64_t factor, bool has_cls) {
    if (features.dim() != 3) refuse("features are ", said(features), "; give [n, cls + g * g, e].");
    if (factor < 1) refuse("a block of ", factor, " x ", factor, " patches; give 1 or more.");
    counted("features", {features.size(0), features.size(1), features.size(2)});
    const int64_t patches = features.size(1) - has_cls;
    const int64_t grid = patches < 1 ? 0 : std::llround(std::sqrt(double(patches)));
    if (grid < 1 || grid * grid != patches)
        refuse(patches, " patches are not a square grid; give [n, cls + g * g, e].");
    counted("channels of a token", {factor, factor, features.size(2)});
    const Blocks blocks{features.size(0), grid, features.size(2), factor, has_cls};
    counted("tokens of all images", {blocks.images, blocks.tokens(), blocks.channels()});
    return blocks;
}

inline Blocks blocks_of_tokens(const Tensor& grad, int64_t grid, int64_t factor, bool has_cls) {
    if (grad.dim() != 3 || factor < 1 || grid < 1)
        refuse("the gradient is ", said(grad), " of a grid of ", grid, " in blocks of ", factor,
               "; give [n, t, f * f * e], a grid and a factor of 1 or more.");
    counted("the gradient", {grad.size(0), grad.size(1), grad.size(2)});
    counted("patches of all images", {grad.size(0), grid, grid, grad.size(2)});
    const int64_t block = counted("patches of a block", {factor, factor});
    const Blocks blocks{grad.size(0), grid, grad.size(2) / block, factor, has_cls};
    if (grad.size(1) != blocks.tokens() || grad.size(2) != blocks.channels())
        refuse("the gradient is ", said(grad), "; a grid of ", grid, " in blocks of ", factor,
               " has ", blocks.tokens(), " tokens of a multiple of ", block, " channels.");
    return blocks;
}

inline void check_like(const char* name, const Tensor& given, const Tensor& features,
                       std::initializer_list<int64_t> shape, ScalarType dtype) {
    bool fits = given.dim() == int64_t(shape.size()) && given.scalar_type() == dtype &&
                given.device() == features.device();
    int64_t axis = 0;
    for (const int64_t size : shape) fits = fits && given.size(axis++) == size;
    if (fits) return;
    std::ostringstream allowed;
    for (const int64_t size : shape) allowed << (allowed.tellp() ? ", " : "") << size;
    refuse(name, " is ", said(given), "; give ", torch::headeronly::toString(dtype), " [",
           allowed.str(), "] on the same device.");
}

// The number format of statistics: fp32, or fp64 for fp64.
inline ScalarType wide(ScalarType dtype) {
    return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Text embeddings as rows of `width`, and how visual tokens find their row.
struct Places {
    int64_t positions, rows, width;   // of the text, or of a shard of it
    int64_t position_step, row_step;  // in rows of `width`
    int64_t images, num_visual;       // visual tokens per image
    int64_t first_position, sequence_length;

    int64_t total() const { return positions * rows; }
};

inline Places places_in(const Tensor& text, const Tensor& image_starts, int64_t num_visual,
                        bool sequence_first, int64_t first_position, int64_t sequence_length) {
    if (text.dim() != 3) refuse("the text is ", said(text), "; give [b, s, h] or [s, b, h].");
    if (image_starts.dim() != 2 || image_starts.size(1) != 2 ||
        image_starts.scalar_type() != ScalarType::Long || image_starts.device() != text.device())
        refuse("image_starts is ", said(image_starts),
               "; give Long [n, 2], row and first position, on the text's device.");
    const int64_t positions = text.size(sequence_first ? 0 : 1);
    const int64_t rows = text.size(sequence_first ? 1 : 0);
    counted("embeddings", {positions, rows, text.size(2)});
    if (num_visual < 0 || first_position < 0 || sequence_length < positions ||
        first_position > sequence_length - positions) {
        int64_t end;
        if (__builtin_add_overflow(first_position, positions, &end)) end = INT64_MAX;
        refuse("positions ", first_position, " to ", end, " are no shard of a sequence of ",
               sequence_length, ".");
    }
    counted("visual tokens", {image_starts.size(0), num_visual, text.size(2)});
    return {positions,
            rows,
            text.size(2),
            sequence_first ? rows : 1,
            sequence_first ? 1 : positions,
            image_starts.size(0),
            num_visual,
            first_position,
            sequence_length};
}

inline Places places_in(const Tensor& text, const Tensor& visual, const Tensor& image_starts,
                        bool sequence_first, int64_t first_position, int64_t sequence_length) {
    if (visual.dim() != 3) refuse("the visual tokens are ", said(visual), "; give [n, q, h].");
    const Places places = places_in(text, image_starts, visual.size(1), sequence_first,
                                    first_position, sequence_length);
    check_like("visual", visual, text, {places.images, places.num_visual, places.width},
               text.scalar_type());
    return places;
}

// How images [n, 3, y, x] are cut into patches.
struct Patches {
    int64_t images, y, x, patch;

    int64_t lines() const { return y / patch; }
    int64_t columns() const { return x / patch; }
    int64_t width() const { return 3 * patch * patch; }
};

inline Patches patches_of(const Tensor& images, const Tensor& table, int64_t patch) {
    if (images.dim() != 4 || images.size(1) != 3 || images.scalar_type() != ScalarType::Byte)
        refuse("images are ", said(images), "; give Byte [n, 3, y, x].");
    const Patches patches{images.size(0), images.size(2), images.size(3), patch};
    if (patch < 1 || patch > patches.y || patch > patches.x)
        refuse("images of ", patches.y, " x ", patches.x, " pixels hold no patch of ", patch,
               " pixels.");
    counted("pixels", {patches.images, 3, patches.y, patches.x});
    check_like("table", table, images, {3, 256}, table.scalar_type());
    return patches;
}

}  // namespace vila_mc
