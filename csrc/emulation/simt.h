// CUDA's names for a plain C++17 compiler, as far as the kernels use them.
//
// Every CUDA thread is a fiber (fiber.h) of one CPU thread; emulator.cpp runs the blocks one after
// the other. Number formats come from torch's header-only half of itself: nothing links to torch.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// An exact-size heap block full of NaN, one for each declaration and CUDA block.
#define SIMT_SHARED(T, name, count)   \
    static const char name##_tag = 0; \
    T* const name = static_cast<T*>(::simt::static_shared(&name##_tag, sizeof(T) * (count)))

namespace simt {

using Stream = void*;

struct Coordinates {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern Coordinates* current;  // of the fiber that runs

/// Where a barrier or a warp operation stands in the source.
struct Site {
    const char* file;
    int line;
};

using Body = void (*)(void* context);
void run(dim3 grid, dim3 block, size_t shared_bytes, Body body, void* context);

/// What make_room() answers: the device that the emulator plays.
struct Room {
    int multiprocessors = 0, blocks_each = 0;

    int64_t blocks() const { return int64_t(multiprocessors) * blocks_each; }
};
extern Room played_device;

template <class... P>
int make_room(void (*)(P...), int, size_t, Room& room) {
    room = played_device;
    return 0;
}

/// Order in which threads run between two barriers: by number for 0, else shuffled by this seed.
void set_order(unsigned seed);

void* static_shared(const void* tag, size_t bytes);
void* dynamic_shared_bytes();
int block_barrier(int predicate, Site site);
[[noreturn]] void fail(const char* what, Site site);
int lane_id();

// Lanes of `mask` meet; the last to arrive runs `combine` over the inputs and outputs of all.
// Moving registers is no memory traffic, so ThreadSanitizer must not watch `combine`; and unlike
// __syncwarp, a shuffle orders no memory.
#define SIMT_UNWATCHED __attribute__((no_sanitize("thread")))
using Combine = void (*)(uint32_t mask, const void* const in[32], void* const out[32], Site site);
void warp_collective(uint32_t mask, Combine combine, const void* in, void* out, bool orders_memory,
                     Site site);

template <class T>
T* dynamic_shared() {
    return static_cast<T*>(dynamic_shared_bytes());
}

template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
           A... arguments) {
    auto call = [&] { kernel(static_cast<P>(arguments)...); };
    run(
        grid, block, shared_bytes,
        [](void* context) { (*static_cast<decltype(call)*>(context))(); }, &call);
    return 0;
}

template <class T>
struct Shuffled {
    T value;
    int source;
};

template <class T>
SIMT_UNWATCHED void move_between_lanes(uint32_t mask, const void* const in[32], void* const out[32],
                                       Site site) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const int source = static_cast<const Shuffled<T>*>(in[lane])->source;
        if (!(mask >> source & 1)) fail("a shuffle reads a lane outside its mask", site);
        *static_cast<T*>(out[lane]) = static_cast<const Shuffled<T>*>(in[source])->value;
    }
}

template <class T>
T shuffle(uint32_t mask, T value, int source, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
    const Shuffled<T> in{value, source};
    T out;
    warp_collective(mask, move_between_lanes<T>, &in, &out, false, site);
    return out;
}

SIMT_UNWATCHED inline void collect_votes(uint32_t mask, const void* const in[32],
                                         void* const out[32], Site) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        if ((mask >> lane & 1) && *static_cast<const int*>(in[lane]) != 0) votes |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) *static_cast<uint32_t*>(out[lane]) = votes;
}

SIMT_UNWATCHED inline void only_meet(uint32_t, const void* const*, void* const*, Site) {}

}  // namespace simt

#define threadIdx (::simt::current->thread)
#define blockIdx (::simt::current->block)
#define blockDim (::simt::current->block_dim)
#define gridDim (::simt::current->grid_dim)

#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_HERE) { simt::block_barrier(0, {file, line}); }
inline int __syncthreads_or(int predicate, SIMT_HERE) {
    return simt::block_barrier(predicate, {file, line});
}
inline void __syncwarp(uint32_t mask = ~0u, SIMT_HERE) {
    simt::warp_collective(mask, simt::only_meet, nullptr, nullptr, true, {file, line});
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, SIMT_HERE) {
    return simt::shuffle(mask, value, source & 31, {file, line});
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, SIMT_HERE) {
    return simt::shuffle(mask, value, simt::lane_id() ^ bits, {file, line});
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, SIMT_HERE) {
    uint32_t votes = 0;
    simt::warp_collective(mask, simt::collect_votes, &predicate, &votes, false, {file, line});
    return votes;
}

// Atomic in earnest, so that ThreadSanitizer tells them from plain accesses.
template <class T>
T atomicAdd(T* address, T value) {
    T old, sum;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        sum = old + value;
    } while (
        !__atomic_compare_exchange(address, &old, &sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

using __nv_bfloat16 = c10::BFloat16;
using __half = c10::Half;
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __float2half_rn(float x) { return x; }
