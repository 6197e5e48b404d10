// normalize_patchify: a table look-up per channel value, written where the patch embedding reads.

#include <torch/csrc/stable/library.h>

#include "blocks.h"
#include "numbers.h"

namespace vila_mc {
namespace {

// One row of patches of one image: `patch` lines of x pixels in each of 3 channels. Where kPatch is
// not 0 it is the patch, known to the compiler, which then unrolls the innermost loop.
template <int64_t kPatch, class T>
void patchify_row(const uint8_t* image, const T* table, T* out, int64_t y, int64_t x, int64_t line,
                  int64_t any_patch) {
    const int64_t patch = kPatch ? kPatch : any_patch;
    const int64_t columns = x / patch, width = 3 * patch * patch;
    for (int64_t channel = 0; channel < 3; ++channel) {
        const T* values = table + 256 * channel;
        for (int64_t dy = 0; dy < patch; ++dy) {
            const uint8_t* from = image + (channel * y + line * patch + dy) * x;
            T* to = out + (channel * patch + dy) * patch;
            for (int64_t column = 0; column < columns; ++column, from += patch, to += width)
                for (int64_t dx = 0; dx < patch; ++dx) to[dx] = values[from[dx]];
        }
    }
}

Tensor normalize_patchify(const Tensor& given, const Tensor& given_table, int64_t patch) {
    if (given.dim() != 4 || given.size(1) != 3 || given.scalar_type() != ScalarType::Byte)
        refuse("images are ", said(given), "; give Byte [n, 3, y, x].");
    const int64_t n = given.size(0), y = given.size(2), x = given.size(3);
    if (patch < 1 || patch > y || patch > x)
        refuse("images of ", y, " x ", x, " pixels hold no patch of ", patch, " pixels.");
    check_like("table", given_table, given, {3, 256}, given_table.scalar_type());
    const Tensor images = torch::stable::contiguous(given);
    const Tensor table = torch::stable::contiguous(given_table);
    const int64_t lines = y / patch, columns = x / patch;
    const int64_t line_width = columns * 3 * patch * patch;
    Tensor out = torch::stable::new_empty(table, {n, lines * columns, 3 * patch * patch});
    const auto* from = static_cast<const uint8_t*>(images.const_data_ptr());
    with_float(table.scalar_type(), [&](auto number) {
        using T = decltype(number);
        const T* values = static_cast<const T*>(table.const_data_ptr());
        T* to = static_cast<T*>(out.mutable_data_ptr());
        const auto run = patch == 14   ? patchify_row<14, T>
                         : patch == 16 ? patchify_row<16, T>
                                       : patchify_row<0, T>;
        for_rows(n * lines, line_width, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                run(from + row / lines * 3 * y * x, values, to + row * line_width, y, x,
                    row % lines, patch);
        });
    });
    return out;
}

}  // namespace
}  // namespace vila_mc

STABLE_TORCH_LIBRARY_IMPL(vila_mc, CPU, m) {
    m.impl("normalize_patchify", TORCH_BOX(&vila_mc::normalize_patchify));
}
