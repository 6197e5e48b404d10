// Fibers: many stacks, of which one runs until it gives way to the scheduler.
//
// The sanitizers learn of every switch. For ThreadSanitizer a fiber is a thread of its own that
// nothing orders before another but what acquire() and release() say.
#pragma once

#include <cstddef>

namespace simt {

struct Fiber {
    char* stack = nullptr;       // lowest address
    void* context = nullptr;     // where it goes on
    void* thread = nullptr;      // what ThreadSanitizer calls it
    void* fake_stack = nullptr;  // what AddressSanitizer keeps for it
};

constexpr int kPools = 2;

/// Whether this process runs under ThreadSanitizer.
bool is_watched_for_races();

/// A fiber that will run `entry`, which must end with leave_for_good(). For the host.
///
/// Stacks and ThreadSanitizer's threads are kept by pool and number, as they are dear to make. To
/// ThreadSanitizer equal ones are one thread, in order: what may race must not share a pool.
Fiber make_fiber(int pool, int number, void (*entry)());

void enter(Fiber& fiber);  // from the scheduler; comes back when the fiber gives way
void give_way();           // from a fiber to the scheduler
void begin();              // the first thing `entry` does
[[noreturn]] void leave_for_good();

void acquire(void* tag);
void release(void* tag);

/// Runs `work` as the scheduler, so that its writes are the host's and not the running fiber's.
void as_host(void (*work)(void*), void* context);

}  // namespace simt
