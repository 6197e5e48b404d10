// Runs a grid on the CPU, block after block. Compiled without instrumentation, as fiber.cpp.
//
// A kernel that breaks CUDA's rules ends the process with one line on stderr and status kFailed.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

Coordinates* current = nullptr;
Room played_device{2, 2};

namespace {

constexpr int kFailed = 3;
constexpr int kWarp = 32;

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
    Coordinates at;
    Fiber fiber;
    int number = 0;  // within the block
    State state = State::kReady;
    Site site{};  // of what it waits at
    int predicate = 0;
    int any_predicate = 0;
    uint32_t mask = 0;
    Combine combine = nullptr;
    const void* in = nullptr;
    void* out = nullptr;
};

// Two tags taken in turn: a thread that has left a barrier and come to the next must not order its
// new writes before a slower thread that is still leaving the first.
struct Turnstile {
    char tags[2] = {};
    int turn = 0;
};

struct Warp {
    uint32_t arrived = 0;
    Turnstile turnstile;
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Turnstile barrier;
    std::map<const void*, void*> shared;  // by declaration; null is what the launch asked for
};

struct Grid {
    dim3 grid_dim, block_dim;
    size_t shared_bytes = 0;
    Body body = nullptr;
    void* context = nullptr;
    Block* block = nullptr;
    Thread* running = nullptr;
    int pool = 0;
    std::vector<std::unique_ptr<Block>> finished;  // kept for ThreadSanitizer: freeing is a write
    char started = 0, ended = 0;
};

Grid* grid = nullptr;
unsigned order_seed = 0;

std::string place(Site site) {
    const std::string path = site.file;
    return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line);
}

std::string who(const Thread& thread) {
    auto triple = [](uint3 v) {
        return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) +
               ")";
    };
    return "block " + triple(thread.at.block) + " thread " + triple(thread.at.thread);
}

[[noreturn]] void give_up(const std::string& what) {
    std::fprintf(stderr, "emulator: %s\n", what.c_str());
    std::fflush(stderr);
    _exit(kFailed);
}

struct Wanted {
    size_t bytes;
    const void* tag;  // null for what the launch asked for
};

// Also the bookkeeping is the host's: operator new and memmove are watched whoever calls them.
void allocate_shared(void* context) {
    const Wanted& wanted = *static_cast<const Wanted*>(context);
    // malloc aligns to 16 bytes and lets AddressSanitizer see the end to the byte.
    void* memory = std::malloc(std::max<size_t>(wanted.bytes, 1));
    if (memory == nullptr) std::abort();
    // A byte at a time and volatile: a call of memset would be watched.
    volatile char* bytes = static_cast<char*>(memory);
    for (size_t i = 0; i < wanted.bytes; ++i) bytes[i] = char(0xff);
    grid->block->shared[wanted.tag] = memory;
    release(memory);
}

/// Memory full of NaN for one declaration, or for the launch, in the running block.
void* shared_memory(const void* tag, size_t bytes) {
    const auto found = grid->block->shared.find(tag);
    void* memory = found == grid->block->shared.end() ? nullptr : found->second;
    if (memory == nullptr) {
        Wanted wanted{bytes, tag};
        as_host(allocate_shared, &wanted);
        memory = grid->block->shared.find(tag)->second;
    }
    acquire(memory);
    return memory;
}

void run_thread() {
    begin();
    acquire(&grid->started);
    grid->body(grid->context);
    release(&grid->ended);
    grid->running->state = State::kDone;
    leave_for_good();
}

void wait_until_ready(Thread& thread) {
    while (thread.state != State::kReady) give_way();
}

void fill(Block& block, uint3 number) {
    const dim3 dim = grid->block_dim;
    const unsigned count = dim.x * dim.y * dim.z;
    block.threads.resize(count);
    block.warps.resize((count + kWarp - 1) / kWarp);
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = block.threads[i];
        thread.number = int(i);
        thread.at = {
            {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y}, number, dim, grid->grid_dim};
        thread.fiber = make_fiber(grid->pool, int(i), run_thread);
    }
}

/// Opens the barrier if every thread that is left stands at it.
bool open_barrier(Block& block) {
    const Thread* first = nullptr;
    int any_predicate = 0;
    for (const Thread& thread : block.threads) {
        if (thread.state == State::kDone) continue;  // threads that returned are not waited for
        if (thread.state != State::kAtBarrier) return false;
        any_predicate |= thread.predicate != 0;
        if (first == nullptr) {
            first = &thread;
        } else if (thread.site.line != first->site.line || thread.site.file != first->site.file) {
            give_up("threads of one block wait at different barriers: " + who(*first) + " at " +
                    place(first->site) + ", " + who(thread) + " at " + place(thread.site));
        }
    }
    block.barrier.turn ^= 1;
    for (Thread& thread : block.threads) {
        if (thread.state != State::kAtBarrier) continue;
        thread.any_predicate = any_predicate;
        thread.state = State::kReady;
    }
    return true;
}

[[noreturn]] void report_deadlock(const Block& block) {
    for (const Thread& thread : block.threads)
        if (thread.state == State::kInWarp)
            give_up("a warp operation at " + place(thread.site) +
                    " waits for lanes that never come: " + who(thread));
    std::abort();  // a block whose threads are done, or all at a barrier, is no deadlock
}

void run_to_the_end(Block& block, std::mt19937* shuffle) {
    std::vector<int> turns(block.threads.size());
    for (size_t i = 0; i < turns.size(); ++i) turns[i] = int(i);
    for (size_t done = 0; done < block.threads.size();) {
        if (shuffle != nullptr) std::shuffle(turns.begin(), turns.end(), *shuffle);
        bool has_moved = false;
        for (const int turn : turns) {
            Thread& thread = block.threads[turn];
            if (thread.state != State::kReady) continue;
            has_moved = true;
            grid->running = &thread;
            current = &thread.at;
            enter(thread.fiber);
            if (thread.state == State::kDone) ++done;
        }
        if (!has_moved && !open_barrier(block)) report_deadlock(block);
    }
}

void free_shared(const Block& block) {
    for (const auto& [tag, memory] : block.shared) std::free(memory);
}

void run_block(uint3 number, std::mt19937* shuffle) {
    auto block = std::make_unique<Block>();
    grid->block = block.get();
    fill(*block, number);
    release(&grid->started);
    run_to_the_end(*block, shuffle);
    grid->pool = (grid->pool + 1) % kPools;  // neighbouring blocks may race
    if (is_watched_for_races()) {
        grid->finished.push_back(std::move(block));
        return;
    }
    free_shared(*block);
}

}  // namespace

void set_order(unsigned seed) { order_seed = seed; }

void run(dim3 grid_dim, dim3 block_dim, size_t shared_bytes, Body body, void* context) {
    Grid here;
    here.grid_dim = grid_dim;
    here.block_dim = block_dim;
    here.shared_bytes = shared_bytes;
    here.body = body;
    here.context = context;
    grid = &here;
    std::mt19937 shuffle(order_seed);
    for (unsigned z = 0; z < grid_dim.z; ++z)
        for (unsigned y = 0; y < grid_dim.y; ++y)
            for (unsigned x = 0; x < grid_dim.x; ++x)
                run_block({x, y, z}, order_seed != 0 ? &shuffle : nullptr);
    acquire(&here.ended);
    for (const auto& block : here.finished) free_shared(*block);
    grid = nullptr;
}

void fail(const char* what, Site site) {
    give_up(std::string(what) + " at " + place(site) + ": " + who(*grid->running));
}

int lane_id() { return grid->running->number % kWarp; }

void* dynamic_shared_bytes() { return shared_memory(nullptr, grid->shared_bytes); }

void* static_shared(const void* tag, size_t bytes) { return shared_memory(tag, bytes); }

int block_barrier(int predicate, Site site) {
    Thread& self = *grid->running;
    self.predicate = predicate;
    self.site = site;
    Turnstile& barrier = grid->block->barrier;
    char* tag = &barrier.tags[barrier.turn];
    release(tag);
    self.state = State::kAtBarrier;
    wait_until_ready(self);
    acquire(tag);
    return self.any_predicate;
}

void warp_collective(uint32_t mask, Combine combine, const void* in, void* out, bool orders_memory,
                     Site site) {
    Thread& self = *grid->running;
    Block& block = *grid->block;
    const int lane = self.number % kWarp, first = self.number - lane;
    const int width = std::min<int>(kWarp, int(block.threads.size()) - first);
    if (width < kWarp) mask &= (1u << width) - 1;
    if (!(mask >> lane & 1)) fail("a lane calls a warp operation whose mask leaves it out", site);
    self.site = site;
    self.mask = mask;
    self.combine = combine;
    self.in = in;
    self.out = out;
    Warp& warp = block.warps[first / kWarp];
    char* tag = &warp.turnstile.tags[warp.turnstile.turn];
    if (orders_memory) release(tag);
    self.state = State::kInWarp;
    warp.arrived |= 1u << lane;
    if ((warp.arrived & mask) == mask) {
        const void* ins[kWarp] = {};
        void* outs[kWarp] = {};
        for (int other = 0; other < width; ++other) {
            if (!(mask >> other & 1)) continue;
            const Thread& thread = block.threads[first + other];
            if (thread.mask != mask || thread.combine != combine || thread.site.line != site.line)
                fail("lanes of a warp meet at different operations or masks", site);
            ins[other] = thread.in;
            outs[other] = thread.out;
        }
        combine(mask, ins, outs, site);
        warp.turnstile.turn ^= int(orders_memory);
        warp.arrived &= ~mask;
        for (int other = 0; other < width; ++other)
            if (mask >> other & 1) block.threads[first + other].state = State::kReady;
    }
    wait_until_ready(self);
    if (orders_memory) acquire(tag);
}

}  // namespace simt
