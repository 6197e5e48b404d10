// Stands in for ThreadSanitizer's run time: what the compiler calls before each access counts it.
// Accesses outside the tensors (stacks, shared memory) are ignored.
#include "traffic.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

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

void access(const void* address, size_t bytes, size_t Tensor::* counter) {
    const char* at = static_cast<const char*>(address);
    for (Tensor& tensor : tensors())
        if (at >= tensor.begin && at < tensor.end) tensor.*counter += bytes;
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

#define COUNTED(bytes)                                                                           \
    void __tsan_read##bytes(void* at) { traffic::access(at, bytes, &traffic::Tensor::loaded); }  \
    void __tsan_write##bytes(void* at) { traffic::access(at, bytes, &traffic::Tensor::stored); } \
    void __tsan_unaligned_read##bytes(void* at) { __tsan_read##bytes(at); }                      \
    void __tsan_unaligned_write##bytes(void* at) { __tsan_write##bytes(at); }

extern "C" {
COUNTED(1)
COUNTED(2)
COUNTED(4)
COUNTED(8)
COUNTED(16)
void __tsan_read_range(void* at, size_t bytes) {
    traffic::access(at, bytes, &traffic::Tensor::loaded);
}
void __tsan_write_range(void* at, size_t bytes) {
    traffic::access(at, bytes, &traffic::Tensor::stored);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}

// Atomics are calls altogether; the kernels use these two, on amax alone.
int __tsan_atomic32_load(const volatile int* at, int) {
    traffic::access(const_cast<const int*>(at), 4, &traffic::Tensor::loaded);
    return *at;
}
bool __tsan_atomic32_compare_exchange_strong(volatile int* at, int* expected, int wanted, int,
                                             int) {
    traffic::access(const_cast<const int*>(at), 4, &traffic::Tensor::stored);
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
