// Number formats on the CPU, and one source compiled for several instruction sets.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../checks.h"

// Whether code for several kinds of x86 processors can stand beside each other.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12
#define VILA_MC_X86 1
#include <immintrin.h>
#else
#define VILA_MC_X86 0
#endif

// A function marked so exists in three versions; the loader takes the best that the processor has.
// What it calls must be inlined to be part of it: VILA_MC_INLINE.
#if VILA_MC_X86
#define VILA_MC_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define VILA_MC_CLONES
#endif
#define VILA_MC_INLINE inline __attribute__((always_inline))

namespace vila_mc {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
VILA_MC_INLINE Wide<T> widen(T value) {
    return static_cast<Wide<T>>(value);
}

template <>
VILA_MC_INLINE float widen(BFloat16 value) {
    const uint32_t bits = uint32_t(value.x) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

template <class T>
VILA_MC_INLINE T narrow(Wide<T> value) {
    return static_cast<T>(value);
}

// To the nearest, ties to even; without a branch, so that loops over it become vector code.
template <>
VILA_MC_INLINE BFloat16 narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return BFloat16(uint16_t(is_nan ? 0x7fc0 : rounded), BFloat16::from_bits());
}

// Calls `function` with a value of the C++ type of `dtype`.
template <class Function>
void with_float(ScalarType dtype, Function function) {
    switch (dtype) {
        case ScalarType::Float:
            return function(float());
        case ScalarType::BFloat16:
            return function(BFloat16());
        case ScalarType::Half:
            return function(Half());
        case ScalarType::Double:
            return function(double());
        default:
            refuse("the number format is ", torch::headeronly::toString(dtype),
                   "; give Float, BFloat16, Half or Double.");
    }
}

}  // namespace vila_mc
