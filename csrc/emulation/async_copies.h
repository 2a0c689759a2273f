// The asynchronous copies (cp.async) of one thread: issued, committed in groups, and landing only when waited for.
//
// Hardware may land a copy at any time from its issue to its wait. Here it lands as late as can be, and the
// destination is poisoned when the copy is issued: a read that does not wait, or that waits for too little, sees NaN.
#pragma once

#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "shared_memory.h"

namespace mednext_ops::emulation {

class AsyncCopies {
  public:
    // The first `valid` of `bytes` come from `from`, the others are zero.
    void issue(void* to, const void* from, std::size_t bytes, std::size_t valid) {
        std::memset(to, kPoison, bytes);
        open_.push_back({to, from, bytes, valid});
    }

    void commit() {
        groups_.push_back(std::move(open_));
        open_.clear();
    }

    // Lands all groups but the `newest` last ones.
    void wait(std::size_t newest) {
        while (groups_.size() > newest) {
            for (const Copy& copy : groups_.front()) land(copy);
            groups_.pop_front();
        }
    }

    // What lands all that was issued, and that this thread no longer waits for.
    std::function<void()> take() {
        std::vector<Copy> taken;
        for (const auto& group : groups_) taken.insert(taken.end(), group.begin(), group.end());
        taken.insert(taken.end(), open_.begin(), open_.end());
        clear();
        return [taken = std::move(taken)] {
            for (const Copy& copy : taken) land(copy);
        };
    }

    // Copies that the thread has not waited for; groups without copies do not count.
    std::size_t in_flight() const {
        std::size_t count = open_.size();
        for (const auto& group : groups_) count += group.size();
        return count;
    }

    void clear() {
        open_.clear();
        groups_.clear();
    }

  private:
    struct Copy {
        void* to;
        const void* from;
        std::size_t bytes;
        std::size_t valid;
    };

    static void land(const Copy& copy) {
        if (copy.valid > 0) std::memcpy(copy.to, copy.from, copy.valid);
        std::memset(static_cast<std::byte*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
    }

    std::vector<Copy> open_;
    std::deque<std::vector<Copy>> groups_;
};

}  // namespace mednext_ops::emulation
