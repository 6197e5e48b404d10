// Number formats and 16-byte vectors of them.
#pragma once

#include <initializer_list>

#include "simt.cuh"

namespace vila_mc {

using bf16 = __nv_bfloat16;
using half = __half;

constexpr int kVectorBytes = 16;  // what one thread moves best in one instruction

/// N numbers that are loaded and stored in one instruction; their address is a multiple of theirs.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
    T at[N];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ half from_float<half>(float x) {
    return __float2half_rn(x);
}

template <class T, int N>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
    return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <class T, int N>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& values) {
    *reinterpret_cast<Vector<T, N>*>(to) = values;
}

template <class T, int N>
__device__ __forceinline__ Vector<T, N> zeros() {
    Vector<T, N> values;
#pragma unroll
    for (int i = 0; i < N; ++i) values.at[i] = from_float<T>(0.0f);
    return values;
}

/// Whether rows of `bytes`, one after the other from each of `bases`, split into units of `unit`.
inline bool splits_into(int64_t unit, int64_t bytes, std::initializer_list<const void*> bases) {
    bool splits = bytes % unit == 0;
    for (const void* base : bases) splits = splits && reinterpret_cast<uintptr_t>(base) % unit == 0;
    return splits;
}

/// Whether rows of `count` numbers can be read in vectors of 16 bytes.
template <class T>
bool takes_vectors(int64_t count, std::initializer_list<const void*> bases) {
    return splits_into(kVectorBytes, count * int64_t(sizeof(T)), bases);
}

/// Calls `go` with a value of the widest type in which rows of `bytes` can be copied.
template <class Go>
int with_widest(int64_t bytes, std::initializer_list<const void*> bases, Go go) {
    if (splits_into(kVectorBytes, bytes, bases)) return go(Vector<uint32_t, 4>{});
    if (splits_into(sizeof(uint32_t), bytes, bases)) return go(uint32_t{});
    return go(uint16_t{});
}

}  // namespace vila_mc
