// Stands in for ThreadSanitizer's run time: what the compiler calls before each access counts it.
// Accesses outside the tensors (stacks, shared memory) are ignored.
#include "traffic.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <utility>
#include <vector>

#include "simt.h"

namespace traffic {
namespace {

struct Tensor {
    std::string name;
    const char* begin;
    const char* end;
    size_t loaded = 0, stored = 0;
};

std::vector<Tensor>& tensors() {
    static std::vector<Tensor> all;
    return all;
}

Tensor* find(const char* at) {
    for (Tensor& tensor : tensors())
        if (at >= tensor.begin && at < tensor.end) return &tensor;
    return nullptr;
}

constexpr unsigned kWarp = 32;

// How often each lane of a warp has loaded from an address.
using Lanes = std::array<uint16_t, kWarp>;

/// Loads of the block that runs. Lanes of a warp that load the same address move it once.
class BlockLoads {
  public:
    void add(const char* at, size_t bytes) {
        Tensor* const tensor = find(at);
        if (tensor == nullptr) return;
        const uint3 block = simt::current->block;
        if (block.x != block_.x || block.y != block_.y || block.z != block_.z) {
            lanes_.clear();
            block_ = block;
        }
        const unsigned thread = simt::current->thread.x;
        Lanes& lanes = lanes_[{at, thread / kWarp}];
        const uint16_t before = *std::max_element(lanes.begin(), lanes.end());
        if (++lanes[thread % kWarp] > before) tensor->loaded += bytes;
    }

  private:
    uint3 block_{};
    std::map<std::pair<const char*, unsigned>, Lanes> lanes_;
} block_loads;

void load(const void* at, size_t bytes) { block_loads.add(static_cast<const char*>(at), bytes); }

void store(const void* at, size_t bytes) {
    if (Tensor* const tensor = find(static_cast<const char*>(at))) tensor->stored += bytes;
}

}  // namespace

void count(const std::string& name, const void* memory, size_t bytes) {
    const char* begin = static_cast<const char*>(memory);
    tensors().push_back({name, begin, begin + bytes});
}

void print() {
    for (const Tensor& tensor : tensors())
        std::printf("%s %zu %zu\n", tensor.name.c_str(), tensor.loaded, tensor.stored);
}

}  // namespace traffic

#define COUNTED(bytes)                                                      \
    void __tsan_read##bytes(void* at) { traffic::load(at, bytes); }         \
    void __tsan_write##bytes(void* at) { traffic::store(at, bytes); }       \
    void __tsan_unaligned_read##bytes(void* at) { __tsan_read##bytes(at); } \
    void __tsan_unaligned_write##bytes(void* at) { __tsan_write##bytes(at); }

extern "C" {
COUNTED(1)
COUNTED(2)
COUNTED(4)
COUNTED(8)
COUNTED(16)
void __tsan_read_range(void* at, size_t bytes) { traffic::load(at, bytes); }
void __tsan_write_range(void* at, size_t bytes) { traffic::store(at, bytes); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}

// Atomics are calls altogether; the kernels use these two, on amax alone.
int __tsan_atomic32_load(const volatile int* at, int) {
    traffic::load(const_cast<const int*>(at), 4);
    return *at;
}
bool __tsan_atomic32_compare_exchange_strong(volatile int* at, int* expected, int wanted, int,
                                             int) {
    traffic::store(const_cast<const int*>(at), 4);
    if (*at != *expected) {
        *expected = *at;
        return false;
    }
    *at = wanted;
    return true;
}
bool __tsan_atomic32_compare_exchange_weak(volatile int* at, int* expected, int wanted, int order,
                                           int failure_order) {
    return __tsan_atomic32_compare_exchange_strong(at, expected, wanted, order, failure_order);
}
int __tsan_atomic32_compare_exchange_val(volatile int* at, int expected, int wanted, int order,
                                         int failure_order) {
    __tsan_atomic32_compare_exchange_strong(at, &expected, wanted, order, failure_order);
    return expected;
}
}
