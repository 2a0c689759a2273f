// One block of threads: runs each to the next point where it must wait for others, in the order asked for, until all
// have returned.
//
// Between two such points a thread runs alone. A kernel whose threads only meet at its barriers gives the same bits in
// every order; one that lacks a barrier does not.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "async_copies.h"
#include "fiber.h"
#include "mbarriers.h"
#include "settings.h"
#include "shared_memory.h"

namespace mednext_ops::emulation {

inline constexpr unsigned kLanes = 32;
inline constexpr unsigned kBarriers = 16;  // bar.sync 0 to 15

// Where in a kernel something was called.
using CallSite = std::source_location;

// A kernel did what a GPU would not forgive; the text names kernel, block, thread and place.
class EmulationError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// What a launch says of a kernel.
struct Launch {
    std::string kernel;
    dim3 grid;
    dim3 block;
    std::size_t shared_bytes;         // with room between arrays
    std::size_t device_shared_bytes;  // without
    void (*body)(void* argument);     // one thread of the kernel
    void* argument;
};

// Receives what each lane of a warp brought to a collective; lanes outside the mask are null.
using Complete = void (*)(void* const* lanes, unsigned mask);

struct Thread {
    enum class State { ready, waiting, finished };

    unsigned number = 0;  // x fastest
    uint3 index{};
    State state = State::finished;

    // While it waits: for what, and where it said so.
    const char* waits_at = "";
    CallSite where;
    unsigned mask = 0;            // of a warp collective
    Complete complete = nullptr;  // of a warp collective
    void* exchange = nullptr;     // of a warp collective: what this lane brought
    bool (*condition)(void*) = nullptr;
    void* condition_argument = nullptr;

    AsyncCopies copies;
    Fiber fiber;

    unsigned lane() const { return number % kLanes; }
    unsigned warp() const { return number / kLanes; }
};

class Block {
  public:
    Block(const Launch& launch, const Settings& settings);

    // Runs the block at `index`. Throws EmulationError.
    void run(uint3 index);

    // The block and the thread that run at this moment on this thread of the operating system.
    static Block& current();
    Thread& thread() { return *running_; }

    // ---- called by the threads of the kernel ----

    // Waits until every lane of `mask` has come to the same place; the last one runs `complete` for all.
    void warp_collective(const char* name, unsigned mask, void* exchange, Complete complete, const CallSite& where);

    // Waits at barrier `id` until `threads` threads have come, or only counts as one of them.
    void barrier(const char* name, unsigned id, unsigned threads, bool wait, const CallSite& where);

    // Waits until `condition` holds. It is asked again each time that it is this thread's turn.
    void wait_until(const char* name, bool (*condition)(void*), void* argument, const CallSite& where);

    [[noreturn]] void fail(const std::string& sentence, const CallSite& where);

    // Stops the kernel unless `bytes` at `address` are shared memory, and aligned.
    void require_shared(const char* name, const void* address, std::size_t bytes, std::size_t alignment,
                        const CallSite& where);
    void require_aligned(const char* name, const void* address, std::size_t alignment, const CallSite& where);

    SharedMemory& shared() { return shared_; }
    Mbarriers& mbarriers() { return mbarriers_; }
    unsigned thread_count() const { return static_cast<unsigned>(threads_.size()); }

  private:
    struct Barrier {
        unsigned expected = 0;
        unsigned arrived = 0;
        std::vector<Thread*> waiting;
    };

    static void enter(void* thread);
    void suspend(const char* name, const CallSite& where);
    bool resume(Thread& thread);
    bool run_all();
    bool run_first_warp();
    void order_threads();
    [[noreturn]] void fail_deadlocked();
    std::string place() const;

    const Launch& launch_;
    Settings settings_;
    std::uint64_t random_ = 0;
    uint3 index_{};
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Thread*> order_;
    std::vector<unsigned> arrived_lanes_;  // of each warp, at a collective
    Barrier barriers_[kBarriers];
    SharedMemory shared_;
    Mbarriers mbarriers_;
    Thread* running_ = nullptr;
    unsigned unfinished_ = 0;
    std::exception_ptr failure_;
};

std::string describe(const CallSite& where);
std::string describe(const uint3& index);

}  // namespace mednext_ops::emulation
