// Patches through a table of 256 values, four at a time, on processors that look 64 bytes up at
// once.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace vila_mc {

constexpr int64_t kNeighbours = 4;  // patches that are made together, one in each 16 bytes

#if VILA_MC_X86
#define VILA_MC_LOOKUP_TARGET __attribute__((target("avx512f,avx512bw,avx512vbmi")))
#pragma GCC diagnostic push  // gcc 12 warns of its own header (bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// A table of [3, 256] values by byte: the first bytes of all values of a channel, the second, ...
template <class T>
struct BytePlanes {
    explicit BytePlanes(const T* table) {
        for (int64_t i = 0; i < 3 * 256; ++i)
            for (size_t byte = 0; byte < sizeof(T); ++byte)
                values[i / 256][byte][i % 256] = uint8_t(table[i] >> 8 * byte);
    }
    alignas(64) uint8_t values[3][sizeof(T)][256];
};

// Whether patchify_neighbours() can make patches of such a side here.
inline bool has_lookup(int64_t patch) {
    return patch <= 16 && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512bw");
}

// One byte of each of 256 values, in registers.
struct Plane {
    __m512i quarters[4];
};

VILA_MC_LOOKUP_TARGET inline Plane load_plane(const uint8_t* values) {
    return {{_mm512_load_si512(values), _mm512_load_si512(values + 64),
             _mm512_load_si512(values + 128), _mm512_load_si512(values + 192)}};
}

// That byte of 64 of them; `level` says of which.
VILA_MC_LOOKUP_TARGET inline __m512i look_up(const Plane& plane, __m512i level) {
    const __m512i low = _mm512_permutex2var_epi8(plane.quarters[0], level, plane.quarters[1]);
    const __m512i high = _mm512_permutex2var_epi8(plane.quarters[2], level, plane.quarters[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(level), low, high);
}

// The first `patch` of up to 16 values of each patch, whose levels lie in 16 bytes of `level` each.
VILA_MC_LOOKUP_TARGET inline void store_values(const Plane (&plane)[4], __m512i level,
                                               int64_t patch, int64_t count, uint32_t* out,
                                               int64_t stride) {
    const __m512i b0 = look_up(plane[0], level), b1 = look_up(plane[1], level),
                  b2 = look_up(plane[2], level), b3 = look_up(plane[3], level);
    const __m512i low01 = _mm512_unpacklo_epi8(b0, b1), high01 = _mm512_unpackhi_epi8(b0, b1),
                  low23 = _mm512_unpacklo_epi8(b2, b3), high23 = _mm512_unpackhi_epi8(b2, b3);
    // Four values of each patch; then the patches one after the other.
    const __m512i v0 = _mm512_unpacklo_epi16(low01, low23),
                  v4 = _mm512_unpackhi_epi16(low01, low23),
                  v8 = _mm512_unpacklo_epi16(high01, high23),
                  v12 = _mm512_unpackhi_epi16(high01, high23);
    const __m512i v0_p01 = _mm512_shuffle_i32x4(v0, v4, 0x44),
                  v0_p23 = _mm512_shuffle_i32x4(v0, v4, 0xee),
                  v8_p01 = _mm512_shuffle_i32x4(v8, v12, 0x44),
                  v8_p23 = _mm512_shuffle_i32x4(v8, v12, 0xee);
    const __m512i patches[kNeighbours] = {
        _mm512_shuffle_i32x4(v0_p01, v8_p01, 0x88), _mm512_shuffle_i32x4(v0_p01, v8_p01, 0xdd),
        _mm512_shuffle_i32x4(v0_p23, v8_p23, 0x88), _mm512_shuffle_i32x4(v0_p23, v8_p23, 0xdd)};
    const __mmask16 wanted = (1u << patch) - 1;
    for (int64_t i = 0; i < count; ++i)
        _mm512_mask_storeu_epi32(out + i * stride, wanted, patches[i]);
}

VILA_MC_LOOKUP_TARGET inline void store_values(const Plane (&plane)[2], __m512i level,
                                               int64_t patch, int64_t count, uint16_t* out,
                                               int64_t stride) {
    const __m512i b0 = look_up(plane[0], level), b1 = look_up(plane[1], level);
    const __m512i v0 = _mm512_unpacklo_epi8(b0, b1), v8 = _mm512_unpackhi_epi8(b0, b1);
    // 16 values of two patches.
    const __m512i p01 =
        _mm512_permutex2var_epi64(v0, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), v8);
    const __m512i p23 =
        _mm512_permutex2var_epi64(v0, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), v8);
    const uint32_t wanted = (1u << patch) - 1;
    for (int64_t i = 0; i < count; ++i)  // the second of two is stored from 16 values further on
        _mm512_mask_storeu_epi16(out + i * stride - i % 2 * 16, wanted << i % 2 * 16,
                                 i < 2 ? p01 : p23);
}

// `count` patches beside each other, the first at `corner` in 3 channels of y lines of x pixels.
template <class T>
VILA_MC_LOOKUP_TARGET void patchify_neighbours(const uint8_t* corner, const BytePlanes<T>& planes,
                                               T* out, int64_t y, int64_t x, int64_t patch,
                                               int64_t count) {
    alignas(64) uint8_t spread[64];  // 16 bytes for each patch
    for (int64_t i = 0; i < 64; ++i) spread[i] = i % 16 < patch ? i / 16 * patch + i % 16 : 0;
    const __m512i spreading = _mm512_load_si512(spread);
    const __mmask64 pixels = ~uint64_t(0) >> (64 - count * patch);
    for (int64_t channel = 0; channel < 3; ++channel, corner += y * x) {
        Plane plane[sizeof(T)];
        for (size_t byte = 0; byte < sizeof(T); ++byte)
            plane[byte] = load_plane(planes.values[channel][byte]);
        const uint8_t* from = corner;
        for (int64_t dy = 0; dy < patch; ++dy, from += x, out += patch) {
            const __m512i line = _mm512_maskz_loadu_epi8(pixels, from);
            const __m512i level = _mm512_permutexvar_epi8(spreading, line);
            store_values(plane, level, patch, count, out, 3 * patch * patch);
        }
    }
}

#pragma GCC diagnostic pop
#endif

}  // namespace vila_mc
