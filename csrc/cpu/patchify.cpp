// normalize_patchify: a table look-up per channel value, written where the patch embedding reads.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "blocks.h"
#include "lookup.h"

namespace vila_mc {
namespace {

// One patch whose first pixel is `corner`: `patch` lines of it in each of 3 channels of y lines of
// x pixels. Where kPatch is not 0 it is the patch, known to the compiler, which then unrolls.
template <int64_t kPatch, class T>
void patchify_one(const uint8_t* corner, const T* table, T* out, int64_t y, int64_t x,
                  int64_t any_patch) {
    const int64_t patch = kPatch ? kPatch : any_patch;
    for (int64_t channel = 0; channel < 3; ++channel, table += 256, corner += y * x) {
        const uint8_t* from = corner;
        for (int64_t dy = 0; dy < patch; ++dy, from += x, out += patch)
            for (int64_t dx = 0; dx < patch; ++dx) out[dx] = table[from[dx]];
    }
}

// Makes patches of images with y lines of x pixels. T is an unsigned integer: values are copied as
// they are, so their size is all that matters.
template <class T>
class Patchifier {
  public:
    Patchifier(const T* table, int64_t patch, int64_t y, int64_t x)
        : table_(table),
          patch_(patch),
          y_(y),
          x_(x),
          one_(patch == 14   ? patchify_one<14, T>
               : patch == 16 ? patchify_one<16, T>
                             : patchify_one<0, T>) {
#if VILA_MC_X86
        if constexpr (sizeof(T) <= 4)
            if (has_lookup(patch)) planes_.emplace(table);
#endif
    }

    // `count` patches beside each other from `corner` on, at most kNeighbours.
    void operator()(const uint8_t* corner, int64_t count, T* out) const {
#if VILA_MC_X86
        if constexpr (sizeof(T) <= 4)
            if (planes_) return patchify_neighbours(corner, *planes_, out, y_, x_, patch_, count);
#endif
        for (int64_t i = 0; i < count; ++i, corner += patch_, out += 3 * patch_ * patch_)
            one_(corner, table_, out, y_, x_, patch_);
    }

    // Asks for the pixels of a row of patches: they lie in too many places for the processor to see
    // what comes next.
    void prefetch(const uint8_t* corner) const {
        for (int64_t channel = 0; channel < 3; ++channel, corner += y_ * x_)
            for (int64_t i = 0; i < patch_ * x_; i += 64) __builtin_prefetch(corner + i);
    }

  private:
    const T* table_;
    int64_t patch_, y_, x_;
    void (*one_)(const uint8_t*, const T*, T*, int64_t, int64_t, int64_t);
#if VILA_MC_X86
    std::optional<BytePlanes<T>> planes_;
#endif
};

// Calls `function` with an unsigned integer as large as a number of `table`.
template <class Function>
void with_size(const Tensor& table, Function function) {
    switch (table.element_size()) {
        case 2:
            return function(uint16_t());
        case 4:
            return function(uint32_t());
        case 8:
            return function(uint64_t());
        default:
            refuse("table is ", said(table), "; give Float, BFloat16, Half or Double.");
    }
}

Tensor normalize_patchify(const Tensor& given, const Tensor& given_table, int64_t patch) {
    const Patches patches = patches_of(given, given_table, patch);
    const int64_t n = patches.images, y = patches.y, x = patches.x;
    const Tensor images = torch::stable::contiguous(given);
    const Tensor table = torch::stable::contiguous(given_table);
    const int64_t lines = patches.lines(), columns = patches.columns();
    const int64_t width = patches.width(), line_width = columns * width;
    Tensor out = torch::stable::new_empty(table, {n, lines * columns, width});
    const auto* from = static_cast<const uint8_t*>(images.const_data_ptr());
    with_size(table, [&](auto bits) {
        using T = decltype(bits);
        const Patchifier<T> patchify(static_cast<const T*>(table.const_data_ptr()), patch, y, x);
        T* to = static_cast<T*>(out.mutable_data_ptr());
        const auto line_of = [&](int64_t row) {
            return from + (row / lines * 3 * y + row % lines * patch) * x;
        };
        for_rows(n * lines, line_width, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                if (row + 1 < end) patchify.prefetch(line_of(row + 1));
                for (int64_t column = 0; column < columns; column += kNeighbours) {
                    const int64_t count = std::min(kNeighbours, columns - column);
                    patchify(line_of(row) + column * patch, count,
                             to + row * line_width + column * width);
                }
            }
        });
    });
    return out;
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CPU, m) {
    m.impl("normalize_patchify", TORCH_BOX(&vila_mc::normalize_patchify));
}
