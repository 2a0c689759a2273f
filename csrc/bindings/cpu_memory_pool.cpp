#include "memory_pool.h"

#include <cstdlib>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace mednext_ops::bindings {

#if defined(__linux__)
namespace {

constexpr const char* kVariable = "MEDNEXT_OPS_CPU_POOL";
constexpr std::int64_t kMebibyte = 1 << 20;
constexpr std::int64_t kDefaultCapacity = 1024 * kMebibyte;

std::int64_t capacity_from_environment() {
    const char* variable = std::getenv(kVariable);
    const std::string asked = variable == nullptr ? "" : variable;
    if (asked.empty()) return kDefaultCapacity;
    if (asked.size() > 9 || asked.find_first_not_of("0123456789") != std::string::npos) {
        throw std::runtime_error(std::string("the environment variable ") + kVariable + " is '" + asked +
                                 "'; it must be a whole number of MiB to keep, 0 for none");
    }
    return std::stoll(asked) * kMebibyte;
}

class Pool {
  public:
    explicit Pool(std::int64_t capacity) : capacity_(capacity) {}

    bool keeps_nothing() const { return capacity_ == 0; }

    // The smallest block that holds `bytes` and wastes at most an eighth of them.
    PooledBlock take(std::int64_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto best = idle_.end();
        for (auto found = idle_.begin(); found != idle_.end(); ++found) {
            if (found->bytes < bytes || found->bytes > bytes + bytes / 8) continue;
            if (best == idle_.end() || found->bytes <= best->bytes) best = found;  // the youngest: nearest in the cache
        }
        if (best == idle_.end()) return {};
        const PooledBlock block = *best;
        idle_.erase(best);
        kept_ -= block.bytes;
        return block;
    }

    void give_back(PooledBlock block) {
        block.fresh = false;
#if defined(MADV_FREE)
        madvise(block.memory, static_cast<std::size_t>(block.bytes), MADV_FREE);
#endif
        std::deque<PooledBlock> surplus;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            idle_.push_back(block);
            kept_ += block.bytes;
            while (kept_ > capacity_) {
                surplus.push_back(idle_.front());
                kept_ -= idle_.front().bytes;
                idle_.pop_front();
            }
        }
        unmap(surplus);
    }

    void clear() {
        std::deque<PooledBlock> surplus;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            surplus.swap(idle_);
            kept_ = 0;
        }
        unmap(surplus);
    }

    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

  private:
    static void unmap(const std::deque<PooledBlock>& blocks) {
        for (const PooledBlock& block : blocks) munmap(block.memory, static_cast<std::size_t>(block.bytes));
    }

    const std::int64_t capacity_;
    std::mutex mutex_;
    std::deque<PooledBlock> idle_;  // the oldest first
    std::int64_t kept_ = 0;
};

Pool& pool();

// Never destroyed: tensors are freed until the last moment of a process. A child that is forked while another thread
// holds the lock would wait for it forever, so a fork waits for the lock.
Pool* make_pool() {
    Pool* made = new Pool(capacity_from_environment());
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
    return made;
}

Pool& pool() {
    static Pool* const instance = make_pool();
    return *instance;
}

void* map_aligned(std::int64_t bytes) {
    const std::size_t wanted = static_cast<std::size_t>(bytes + kLargePage);
    void* const mapped = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(mapped);
    const std::uintptr_t aligned = (first + kLargePage - 1) / kLargePage * kLargePage;
    const std::uintptr_t end = aligned + static_cast<std::uintptr_t>(bytes);
    if (aligned > first) munmap(mapped, aligned - first);
    if (first + wanted > end) munmap(reinterpret_cast<void*>(end), first + wanted - end);
    return reinterpret_cast<void*>(aligned);
}

}  // namespace

PooledBlock take_block(std::int64_t bytes) {
    if (bytes < kLargePage || bytes > INT64_MAX - 2 * kLargePage || pool().keeps_nothing()) return {};
    const std::int64_t rounded = (bytes + kLargePage - 1) / kLargePage * kLargePage;
    const PooledBlock kept = pool().take(rounded);
    if (kept.memory != nullptr) return kept;
    void* memory = map_aligned(rounded);
    if (memory == nullptr) {
        pool().clear();
        memory = map_aligned(rounded);
    }
    return {memory, memory == nullptr ? 0 : rounded, true};
}

void give_back_block(const PooledBlock& block) {
    pool().give_back(block);
}

#else

PooledBlock take_block(std::int64_t) {
    return {};
}
void give_back_block(const PooledBlock&) {}

#endif

}  // namespace mednext_ops::bindings
