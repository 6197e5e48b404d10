// Compiled without instrumentation: what the emulator keeps for itself is shared by all fibers and
// must not look like traffic of a kernel.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>
#include <deque>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// There in a sanitized process only.
#define MAYBE __attribute__((weak))
extern "C" {
MAYBE void* __tsan_get_current_fiber();
MAYBE void* __tsan_create_fiber(unsigned flags);
MAYBE void __tsan_switch_to_fiber(void* fiber, unsigned flags);
MAYBE void __tsan_acquire(void* tag);
MAYBE void __tsan_release(void* tag);
MAYBE void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
MAYBE void __sanitizer_finish_switch_fiber(void* saved, const void** bottom, size_t* size);
}

constexpr size_t kStackBytes = 128 << 10;

// simt_switch(save, go): keep what a callee must keep, leave the stack pointer in *save, go on at
// `go`. swapcontext does the same with two system calls, several times slower.
#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* go);
asm(R"(.text
.type simt_switch,@function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch)");

static void* first_context(char* stack, void (*entry)()) {
    constexpr int kKept = 6;  // registers that simt_switch pops
    // A function finds its stack 8 bytes off a multiple of 16: its return address lies there.
    void** top = reinterpret_cast<void**>(stack + kStackBytes) - 1;
    *--top = reinterpret_cast<void*>(entry);
    return top - kKept;
}
#else
static void simt_switch(void** save, void* go) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(go));
}

static void* first_context(char* stack, void (*entry)()) {
    auto* context = reinterpret_cast<ucontext_t*>(stack);  // the stack grows from the other end
    getcontext(context);
    context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
    context->uc_stack.ss_size = kStackBytes - sizeof(ucontext_t);
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

namespace simt {
namespace {

constexpr unsigned kOrdersNothing = 1;  // a switch that is no synchronisation

struct Host {
    void* context = nullptr;
    void* thread = nullptr;
    void* fake_stack = nullptr;
    const void* stack = nullptr;
    size_t stack_bytes = 0;
} host;

Fiber* running = nullptr;

void leave(void** keep_fake_stack) {
    Fiber* self = running;
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(host.thread, kOrdersNothing);
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(keep_fake_stack, host.stack, host.stack_bytes);
    simt_switch(&self->context, host.context);
}

}  // namespace

bool is_watched_for_races() { return __tsan_acquire != nullptr; }

Fiber make_fiber(int pool, int number, void (*entry)()) {
    static std::deque<Fiber> pools[kPools];  // a deque: growing moves nothing
    std::deque<Fiber>& fibers = pools[pool];
    while (int(fibers.size()) <= number) {
        Fiber fresh;
        void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) std::abort();
        fresh.stack = static_cast<char*>(stack);
        if (__tsan_create_fiber) fresh.thread = __tsan_create_fiber(0);
        fibers.push_back(fresh);
    }
    if (__tsan_get_current_fiber) host.thread = __tsan_get_current_fiber();
    Fiber fiber = fibers[number];
    fiber.context = first_context(fiber.stack, entry);
    return fiber;
}

void enter(Fiber& fiber) {
    running = &fiber;
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.thread, kOrdersNothing);
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&host.fake_stack, fiber.stack, kStackBytes);
    simt_switch(&host.context, fiber.context);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
}

void give_way() {
    Fiber* self = running;
    leave(&self->fake_stack);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
}

void begin() {
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(nullptr, &host.stack, &host.stack_bytes);
}

void leave_for_good() {
    leave(nullptr);
    std::abort();  // nobody comes back
}

void acquire(void* tag) {
    if (__tsan_acquire) __tsan_acquire(tag);
}

void release(void* tag) {
    if (__tsan_release) __tsan_release(tag);
}

void as_host(void (*work)(void*), void* context) {
    void* self = __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr;
    if (self != nullptr) __tsan_switch_to_fiber(host.thread, kOrdersNothing);
    work(context);
    if (self != nullptr) __tsan_switch_to_fiber(self, kOrdersNothing);
}

}  // namespace simt
