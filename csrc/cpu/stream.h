// Stores past the caches, for outputs that no cache holds: a plain store first fetches what it is
// about to overwrite, and pushes something else out.
#pragma once

#include <cstdint>
#include <cstring>

#include "numbers.h"
#include "passes.h"

namespace vila_mc {

constexpr int64_t kStreamedBytes = 1 << 20;  // of an output that is worth it: a core's own cache
constexpr int64_t kLine = 64;

inline bool starts_line(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % kLine == 0;
}

#if VILA_MC_X86
#pragma GCC diagnostic push  // gcc 12 warns of its own header (bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define VILA_MC_AVX512 __attribute__((target("avx512f")))
#define VILA_MC_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512bf16")))

// What was streamed is seen by other threads after this.
inline void stream_fence() { _mm_sfence(); }

VILA_MC_AVX512 inline void normalize_lines(const float* from, float mean, float rstd,
                                           const float* weight, const float* bias, float* out,
                                           int64_t width) {
    const __m512 means = _mm512_set1_ps(mean), rstds = _mm512_set1_ps(rstd);
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(from + i), means), rstds);
        _mm512_stream_ps(out + i, _mm512_fmadd_ps(normal, _mm512_loadu_ps(weight + i),
                                                  _mm512_loadu_ps(bias + i)));
    }
}

VILA_MC_AVX512 inline __m512 first_halves(__m512i words) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

VILA_MC_AVX512 inline __m512 second_halves(__m512i words) {
    return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000))));
}

// With the processor's own rounding, which makes results below 2^-126 zero.
VILA_MC_AVX512_BF16 inline void normalize_lines(const BFloat16* from, float mean, float rstd,
                                                const BFloat16* weight, const BFloat16* bias,
                                                BFloat16* out, int64_t width) {
    const __m512 means = _mm512_set1_ps(mean), rstds = _mm512_set1_ps(rstd);
    alignas(kLine) uint16_t turns[32];  // from all first halves and all second ones to words
    for (int i = 0; i < 32; ++i) turns[i] = i % 2 * 16 + i / 2;
    const __m512i in_turn = _mm512_load_si512(turns);
    for (int64_t i = 0; i < width; i += 32) {
        const __m512i x = _mm512_loadu_si512(from + i), scale = _mm512_loadu_si512(weight + i),
                      shift = _mm512_loadu_si512(bias + i);
        const __m512 first = _mm512_mul_ps(_mm512_sub_ps(first_halves(x), means), rstds),
                     second = _mm512_mul_ps(_mm512_sub_ps(second_halves(x), means), rstds);
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(
            _mm512_fmadd_ps(second, second_halves(scale), second_halves(shift)),
            _mm512_fmadd_ps(first, first_halves(scale), first_halves(shift)));
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out + i),
                            _mm512_permutexvar_epi16(in_turn, halves));
    }
}
#pragma GCC diagnostic pop

template <class T>
bool can_stream() {
    if constexpr (std::is_same_v<T, float>) return __builtin_cpu_supports("avx512f");
    if constexpr (std::is_same_v<T, BFloat16>) return __builtin_cpu_supports("avx512bf16");
    return false;
}

// normalize(), streamed where the processor can and the output is whole cache lines.
template <class T>
void normalize_streamed(const T* from, Wide<T> mean, Wide<T> rstd, const T* weight, const T* bias,
                        T* out, int64_t width) {
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, BFloat16>)
        if (can_stream<T>() && starts_line(out) && width * sizeof(T) % kLine == 0)
            return normalize_lines(from, mean, rstd, weight, bias, out, width);
    normalize(from, mean, rstd, weight, bias, out, width);
}
#else
inline void stream_fence() {}

template <class T>
void normalize_streamed(const T* from, Wide<T> mean, Wide<T> rstd, const T* weight, const T* bias,
                        T* out, int64_t width) {
    normalize(from, mean, rstd, weight, bias, out, width);
}
#endif

}  // namespace vila_mc
