// Passes over a run of channels: what LayerNorm adds up, and what it writes.
#pragma once

#include <cmath>
#include <cstdint>

#include "numbers.h"

namespace vila_mc {

// A sum in 64 parts, which wait for each other at the end alone. The order of the additions is the
// same for every instruction set.
template <class W>
struct PartialSums {
    static constexpr int64_t kParts = 64;
    alignas(64) W parts[kParts] = {};

    // Adds term(i) for i < width.
    template <class Term>
    VILA_MC_INLINE void add(int64_t width, Term term) {
        W now[kParts];  // of its own, so that no load can be of what was just stored
        std::memcpy(now, parts, sizeof parts);
        int64_t i = 0;
        for (; i + kParts <= width; i += kParts) {
#pragma omp simd
            for (int64_t part = 0; part < kParts; ++part) now[part] += term(i + part);
        }
        for (int64_t part = 0; i < width; ++i, ++part) now[part] += term(i);
        std::memcpy(parts, now, sizeof parts);
    }

    W total() const {
        constexpr int64_t kQuarter = kParts / 4;
        W sums[kQuarter];
        for (int64_t i = 0; i < kQuarter; ++i)
            sums[i] = (parts[i] + parts[i + kQuarter]) +
                      (parts[i + 2 * kQuarter] + parts[i + 3 * kQuarter]);
        for (int64_t half = kQuarter / 2; half > 0; half /= 2)
            for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
        return sums[0];
    }
};

template <class T>
VILA_MC_CLONES void add_values(const T* from, int64_t width, PartialSums<Wide<T>>& sums) {
    sums.add(width, [=](int64_t i) __attribute__((always_inline)) { return widen<T>(from[i]); });
}

template <class T>
VILA_MC_CLONES void add_squares(const T* from, Wide<T> mean, int64_t width,
                                PartialSums<Wide<T>>& sums) {
    sums.add(width, [=](int64_t i) __attribute__((always_inline)) {
        const Wide<T> distance = widen<T>(from[i]) - mean;
        return distance * distance;
    });
}

template <class T>
VILA_MC_CLONES void normalize(const T* from, Wide<T> mean, Wide<T> rstd, const T* weight,
                              const T* bias, T* out, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const Wide<T> normal = (widen<T>(from[i]) - mean) * rstd;
        out[i] = narrow<T>(normal * widen<T>(weight[i]) + widen<T>(bias[i]));
    }
}

// bfloat16 two at a time, as the halves of a word: to widen a half is a shift or a mask, where
// numbers taken one by one have to change lanes. The order of sums is one that suits this.
struct BFloat16Pairs {
    using Word [[gnu::aligned(1), gnu::may_alias]] = uint32_t;

    static const Word* of(const BFloat16* numbers) {
        return reinterpret_cast<const Word*>(numbers);
    }
    static Word* of(BFloat16* numbers) { return reinterpret_cast<Word*>(numbers); }
    VILA_MC_INLINE static float first(uint32_t word) { return number(word << 16); }
    VILA_MC_INLINE static float second(uint32_t word) { return number(word & kSecond); }

    // Rounds as narrow() does. A NaN is not looked for: its lower half is 0 where it comes from
    // bfloat16 or from the processor, so that rounding leaves it as it is.
    VILA_MC_INLINE static uint32_t join(float first, float second) {
        return rounded(first) >> 16 | (rounded(second) & kSecond);
    }

  private:
    static constexpr uint32_t kSecond = 0xffff0000;

    VILA_MC_INLINE static float number(uint32_t bits) {
        float result;
        std::memcpy(&result, &bits, sizeof result);
        return result;
    }
    VILA_MC_INLINE static uint32_t rounded(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return bits + 0x7fff + ((bits >> 16) & 1);
    }
};

VILA_MC_CLONES inline void add_values(const BFloat16* from, int64_t width,
                                      PartialSums<float>& sums) {
    const auto* words = BFloat16Pairs::of(from);
    if (width % 2) sums.parts[0] += widen(from[width - 1]);
    sums.add(width / 2, [=](int64_t i) __attribute__((always_inline)) {
        return BFloat16Pairs::first(words[i]) + BFloat16Pairs::second(words[i]);
    });
}

VILA_MC_CLONES inline void add_squares(const BFloat16* from, float mean, int64_t width,
                                       PartialSums<float>& sums) {
    const auto* words = BFloat16Pairs::of(from);
    const float odd = width % 2 ? widen(from[width - 1]) - mean : 0.0f;
    sums.parts[0] += odd * odd;
    sums.add(width / 2, [=](int64_t i) __attribute__((always_inline)) {
        const float one = BFloat16Pairs::first(words[i]) - mean;
        const float other = BFloat16Pairs::second(words[i]) - mean;
        return one * one + other * other;
    });
}

VILA_MC_CLONES inline void normalize(const BFloat16* from, float mean, float rstd,
                                     const BFloat16* weight, const BFloat16* bias, BFloat16* out,
                                     int64_t width) {
    const auto *words = BFloat16Pairs::of(from), *scales = BFloat16Pairs::of(weight),
               *shifts = BFloat16Pairs::of(bias);
    auto* results = BFloat16Pairs::of(out);
#pragma omp simd
    for (int64_t i = 0; i < width / 2; ++i) {
        const float first = (BFloat16Pairs::first(words[i]) - mean) * rstd;
        const float second = (BFloat16Pairs::second(words[i]) - mean) * rstd;
        results[i] = BFloat16Pairs::join(
            first * BFloat16Pairs::first(scales[i]) + BFloat16Pairs::first(shifts[i]),
            second * BFloat16Pairs::second(scales[i]) + BFloat16Pairs::second(shifts[i]));
    }
    if (const int64_t last = width - 1; width % 2)
        out[last] = narrow<BFloat16>((widen(from[last]) - mean) * rstd * widen(weight[last]) +
                                     widen(bias[last]));
}

}  // namespace vila_mc
