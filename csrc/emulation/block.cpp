#include "block.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>
#include <utility>

#include "builtins.h"

namespace mednext_ops::emulation {
namespace {

thread_local Block* current_block = nullptr;

bool same_place(const CallSite& a, const CallSite& b) {
    return a.line() == b.line() && a.column() == b.column() &&
           (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

// 0, 1, 2, 5 -> "0..2, 5"
std::string ranges(const std::vector<unsigned>& numbers) {
    std::string text;
    for (std::size_t i = 0; i < numbers.size();) {
        std::size_t j = i;
        while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
        text += (text.empty() ? "" : ", ") + std::to_string(numbers[i]);
        if (j > i) text += ".." + std::to_string(numbers[j]);
        i = j + 1;
    }
    return text;
}

std::string threads_text(const std::vector<unsigned>& numbers) {
    return (numbers.size() == 1 ? "thread " : "threads ") + ranges(numbers);
}

std::string hexadecimal(unsigned value) {
    std::string text = "0x";
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[value >> shift & 15];
    return text;
}

}  // namespace

std::string describe(const CallSite& where) {
    const std::string_view file = where.file_name();
    return std::string(file.substr(file.find_last_of('/') + 1)) + ":" + std::to_string(where.line());
}

std::string describe(const uint3& index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

Block::Block(const Launch& launch, const Settings& settings) : launch_(launch), settings_(settings) {
    const unsigned count = launch.block.x * launch.block.y * launch.block.z;
    for (unsigned number = 0; number < count; ++number) {
        auto thread = std::make_unique<Thread>();
        thread->number = number;
        thread->index = {number % launch.block.x, number / launch.block.x % launch.block.y,
                         number / launch.block.x / launch.block.y};
        threads_.push_back(std::move(thread));
    }
    arrived_lanes_.resize((count + kLanes - 1) / kLanes);
}

Block& Block::current() {
    return *current_block;
}

void Block::run(uint3 index) {
    index_ = index;
    random_ = settings_.seed;
    for (const unsigned part : {index.x, index.y, index.z}) random_ = next_random(random_) + part;
    failure_ = nullptr;
    shared_.begin_block(launch_.shared_bytes);
    mbarriers_.clear();
    for (Barrier& barrier : barriers_) barrier = {};
    std::ranges::fill(arrived_lanes_, 0u);
    for (const auto& thread : threads_) {
        thread->state = Thread::State::ready;
        thread->copies.clear();
        thread->condition = nullptr;
        thread->fiber.start(&Block::enter, thread.get());
    }
    unfinished_ = thread_count();
    order_.clear();

    Block* const outer = std::exchange(current_block, this);
    blockIdx = index;
    blockDim = launch_.block;
    gridDim = launch_.grid;
    try {
        while (unfinished_ > 0) {
            if (!(settings_.order == Order::uneven ? run_first_warp() : run_all())) fail_deadlocked();
        }
        if (mbarriers_.in_flight() > 0) {
            throw EmulationError(place() + ": the block ends with " + std::to_string(mbarriers_.in_flight()) +
                                 " bulk copies in flight that nobody waited for");
        }
    } catch (...) {
        current_block = outer;
        throw;
    }
    current_block = outer;
}

// Runs the thread if it can go on; whether it could.
bool Block::resume(Thread& thread) {
    if (thread.state == Thread::State::finished) return false;
    running_ = &thread;
    if (thread.state == Thread::State::waiting) {
        if (thread.condition == nullptr || !thread.condition(thread.condition_argument)) return false;
        thread.condition = nullptr;
        thread.state = Thread::State::ready;
    }
    threadIdx = thread.index;
    thread.fiber.resume();
    if (failure_) std::rethrow_exception(failure_);
    return true;
}

// Every thread once, in the order that the settings ask for; whether any could go on.
bool Block::run_all() {
    if (order_.empty() || settings_.order == Order::shuffled) order_threads();
    bool progress = false;
    for (Thread* thread : order_) progress = resume(*thread) || progress;
    return progress;
}

// The first warp that can go on, of an order that is drawn again from time to time: the last ones stand still for long,
// and the first ones get as far ahead as what they wait for lets them.
bool Block::run_first_warp() {
    constexpr std::uint64_t kMeanRounds = 2048;  // some steps of a kernel, each of some dozens of collectives
    if (order_.empty() || next_random(random_) % kMeanRounds == 0) order_threads();
    for (auto first = order_.begin(); first != order_.end();) {
        const unsigned warp = (*first)->warp();
        bool progress = false;
        for (; first != order_.end() && (*first)->warp() == warp; ++first) progress = resume(**first) || progress;
        if (progress) return true;
    }
    return false;
}

void Block::order_threads() {
    order_.clear();
    for (const auto& thread : threads_) order_.push_back(thread.get());
    if (settings_.order != Order::uneven) {
        arrange(order_, settings_.order, random_);
        return;
    }
    std::vector<std::uint64_t> of_warps(arrived_lanes_.size());
    for (std::uint64_t& place : of_warps) place = next_random(random_);
    std::ranges::stable_sort(order_, {}, [&](const Thread* thread) { return of_warps[thread->warp()]; });
}

// The first function on every fiber: nothing may be thrown past it.
void Block::enter(void* argument) {
    Block& block = current();
    auto& thread = *static_cast<Thread*>(argument);
    try {
        block.launch_.body(block.launch_.argument);
        if (const std::size_t lost = thread.copies.in_flight(); lost > 0) {
            throw EmulationError(block.place() + ": the thread returns with " + std::to_string(lost) +
                                 " asynchronous copies in flight; wait for them, even if nobody reads them");
        }
    } catch (...) {
        block.failure_ = std::current_exception();
    }
    thread.state = Thread::State::finished;
    --block.unfinished_;
}

void Block::suspend(const char* name, const CallSite& where) {
    Thread& self = *running_;
    self.state = Thread::State::waiting;
    self.waits_at = name;
    self.where = where;
    self.fiber.suspend();
}

void Block::warp_collective(const char* name, unsigned mask, void* exchange, Complete complete, const CallSite& where) {
    Thread& self = *running_;
    const unsigned bit = 1u << self.lane();
    if ((mask & bit) == 0) {
        fail(std::string(name) + " with the mask " + hexadecimal(mask) + ", in which lane " +
                 std::to_string(self.lane()) + ", the caller, is not",
             where);
    }
    const unsigned first = self.warp() * kLanes;
    const unsigned exist = thread_count() - first >= kLanes ? ~0u : (1u << (thread_count() - first)) - 1;
    if ((mask & ~exist) != 0) {
        fail(std::string(name) + " with the mask " + hexadecimal(mask) + ", but the block's last warp has only " +
                 std::to_string(thread_count() - first) + " lanes",
             where);
    }
    self.mask = mask;
    self.exchange = exchange;
    self.complete = complete;
    self.where = where;
    unsigned& arrived = arrived_lanes_[self.warp()];
    arrived |= bit;

    bool all = (arrived & mask) == mask;
    for (unsigned lane = 0; lane < kLanes && all; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        const Thread& other = *threads_[first + lane];
        all = other.mask == mask && other.complete == complete && same_place(other.where, where);
    }
    if (!all) {
        suspend(name, where);
        return;
    }
    void* lanes[kLanes] = {};
    for (unsigned lane = 0; lane < kLanes; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        lanes[lane] = threads_[first + lane]->exchange;
        if (lane != self.lane()) threads_[first + lane]->state = Thread::State::ready;
    }
    arrived &= ~mask;
    if (complete != nullptr) complete(lanes, mask);
}

void Block::barrier(const char* name, unsigned id, unsigned threads, bool wait, const CallSite& where) {
    if (id >= kBarriers || threads == 0 || threads % kLanes != 0 || threads > thread_count()) {
        // __syncthreads() counts whatever the block has.
        if (id != 0 || threads != thread_count()) {
            fail(std::string(name) + " on barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                     " threads; there are barriers 0 to 15, and the threads are a multiple of 32 and at most those "
                     "of the block",
                 where);
        }
    }
    Barrier& barrier = barriers_[id];
    if (barrier.arrived > 0 && barrier.expected != threads) {
        fail(std::string(name) + " on barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                 " threads, while others wait there for " + std::to_string(barrier.expected),
             where);
    }
    if (id == 0 && !barrier.waiting.empty() && !same_place(barrier.waiting.front()->where, where)) {
        const Thread& other = *barrier.waiting.front();
        fail("divergent barrier: this thread comes to " + std::string(name) + " in " + describe(where) +
                 ", while thread " + describe(other.index) + " waits at " + other.waits_at + " in " +
                 describe(other.where),
             where);
    }
    barrier.expected = threads;
    ++barrier.arrived;
    if (barrier.arrived == threads) {
        for (Thread* other : barrier.waiting) other->state = Thread::State::ready;
        barrier = {};
        return;
    }
    if (!wait) return;
    barrier.waiting.push_back(running_);
    suspend(name, where);
}

void Block::wait_until(const char* name, bool (*condition)(void*), void* argument, const CallSite& where) {
    if (condition(argument)) return;
    running_->condition = condition;
    running_->condition_argument = argument;
    suspend(name, where);
}

std::string Block::place() const {
    return launch_.kernel + ", block " + describe(index_) + ", thread " + describe(running_->index);
}

void Block::fail(const std::string& sentence, const CallSite& where) {
    throw EmulationError(place() + ", " + describe(where) + ": " + sentence);
}

void Block::require_aligned(const char* name, const void* address, std::size_t alignment, const CallSite& where) {
    if (reinterpret_cast<std::uintptr_t>(address) % alignment == 0) return;
    fail(std::string(name) + ": an address is not a multiple of " + std::to_string(alignment) + " bytes", where);
}

void Block::require_shared(const char* name, const void* address, std::size_t bytes, std::size_t alignment,
                           const CallSite& where) {
    if (!shared_.contains(address, bytes)) {
        fail(std::string(name) + ": " + std::to_string(bytes) + " bytes are not all in the block's shared memory",
             where);
    }
    require_aligned(name, address, alignment, where);
}

// Nobody can go on: says what each waits for.
void Block::fail_deadlocked() {
    std::map<std::string, std::vector<unsigned>> groups;
    for (const auto& thread : threads_) {
        std::string what = "returned from the kernel";
        if (thread->state == Thread::State::waiting) {
            what = "waits at " + std::string(thread->waits_at) + " in " + describe(thread->where);
            const bool collective = (arrived_lanes_[thread->warp()] >> thread->lane() & 1) != 0;
            if (collective) what += " for the lanes " + hexadecimal(thread->mask);
        }
        groups[what].push_back(thread->number);
    }
    std::string text = launch_.kernel + ", block " + describe(index_) + ": deadlock, no thread can go on";
    for (const auto& [what, numbers] : groups) text += "; " + threads_text(numbers) + ": " + what;
    throw EmulationError(text);
}

}  // namespace mednext_ops::emulation
