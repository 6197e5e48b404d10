// Passes over a run of channels: what LayerNorm adds up, and what it writes.
#pragma once

#include <cmath>
#include <cstdint>

#include "numbers.h"

namespace vila_mc {

// Calls term(i) for i < width and sums what it returns, in four running sums of 16 numbers each:
// one would wait for itself. The order of the additions is the same for every instruction set.
template <class W, class Term>
VILA_MC_INLINE W sum_of(int64_t width, Term term) {
    constexpr int64_t kLanes = 64;
    W lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
    }
    for (int64_t lane = 0; i < width; ++i, ++lane) lanes[lane] += term(i);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

template <class T>
VILA_MC_CLONES Wide<T> sum(const T* from, int64_t width) {
    return sum_of<Wide<T>>(
        width, [=](int64_t i) __attribute__((always_inline)) { return widen<T>(from[i]); });
}

template <class T>
VILA_MC_CLONES Wide<T> squared_distance(const T* from, Wide<T> mean, int64_t width) {
    return sum_of<Wide<T>>(width, [=](int64_t i) __attribute__((always_inline)) {
        const Wide<T> distance = widen<T>(from[i]) - mean;
        return distance * distance;
    });
}

template <class T, class Out>
VILA_MC_CLONES void normalize(const T* from, Wide<T> mean, Wide<T> rstd, const T* weight,
                              const T* bias, Out* out, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const Wide<T> normal = (widen<T>(from[i]) - mean) * rstd;
        out[i] = narrow<Out>(normal * widen<T>(weight[i]) + widen<T>(bias[i]));
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

VILA_MC_CLONES inline float sum(const BFloat16* from, int64_t width) {
    const auto* words = BFloat16Pairs::of(from);
    const float odd = width % 2 ? widen(from[width - 1]) : 0.0f;
    return odd + sum_of<float>(width / 2, [=](int64_t i) __attribute__((always_inline)) {
               return BFloat16Pairs::first(words[i]) + BFloat16Pairs::second(words[i]);
           });
}

VILA_MC_CLONES inline float squared_distance(const BFloat16* from, float mean, int64_t width) {
    const auto* words = BFloat16Pairs::of(from);
    const float odd = width % 2 ? widen(from[width - 1]) - mean : 0.0f;
    return odd * odd + sum_of<float>(width / 2, [=](int64_t i) __attribute__((always_inline)) {
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

VILA_MC_CLONES inline float largest(const float* row, int64_t width) {
    float top = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < width; ++i) top = std::fabs(row[i]) > top ? std::fabs(row[i]) : top;
    return top;
}

}  // namespace vila_mc
