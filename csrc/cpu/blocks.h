// Where a token's patches lie, and parallel loops over tokens.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../checks.h"

namespace vila_mc {

// Calls run(channel, patch, width) for each run of a token's channels that is contiguous in the
// features; `patch` is its first row in [n * (cls + g * g), e], or -1 for padding.
template <class Function>
inline void for_runs(const Blocks& blocks, int64_t token, Function run) {
    const int64_t side = blocks.side(), factor = blocks.factor, grid = blocks.grid;
    const int64_t image = token / blocks.tokens(), at = token % blocks.tokens();
    const int64_t y = at / side * factor, x = at % side * factor;
    const int64_t inside = std::min(factor, grid - x) * blocks.width;
    for (int64_t dy = 0; dy < factor; ++dy) {
        const int64_t channel = dy * factor * blocks.width;
        const int64_t width = y + dy < grid ? inside : 0;
        if (width > 0)
            run(channel, image * blocks.patches() + blocks.cls + (y + dy) * grid + x, width);
        if (width < factor * blocks.width)
            run(channel + width, int64_t(-1), factor * blocks.width - width);
    }
}

// Calls function(begin, end) on ranges of rows, on torch's threads where there is enough to do.
template <class Function>
inline void for_rows(int64_t rows, int64_t width, Function function) {
    constexpr int64_t kEnough = 32768;  // elements for which a thread is worth waking
    const int64_t grain = std::max<int64_t>(1, kEnough / std::max<int64_t>(1, width));
    if (rows > 0) torch::stable::parallel_for(0, rows, grain, function);
}

}  // namespace vila_mc
