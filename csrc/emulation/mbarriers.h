// The mbarriers of a block, and the bulk copies (TMA) that complete on them.
//
// A barrier is known by its address in shared memory; its state is kept here, and the 8 bytes there stay poisoned. A
// bulk copy lands when somebody waits on its barrier, and its destination is poisoned when it is issued; so do copies
// of a thread that arrives when they have landed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace mednext_ops::emulation {

struct Mbarrier {
    const void* address;
    unsigned expected_arrivals;
    unsigned missing_arrivals;
    std::int64_t missing_bytes;
    unsigned phase;  // its parity

    // Ends the phase if everything that it waits for is there.
    void advance() {
        if (missing_arrivals > 0 || missing_bytes != 0) return;
        phase ^= 1;
        missing_arrivals = expected_arrivals;
    }
};

class Mbarriers {
  public:
    void initialise(const void* address, unsigned arrivals);

    // Null where no barrier was initialised.
    Mbarrier* find(const void* address);

    // `land` writes `bytes` to shared memory.
    void issue(const void* address, std::int64_t bytes, std::function<void()> land);

    // `land` does copies of a thread, which arrives then.
    void issue_arrival(const void* address, std::function<void()> land);

    // Lands what was issued on this barrier.
    void land(Mbarrier& barrier);

    std::size_t in_flight() const { return copies_.size(); }
    void clear();

  private:
    struct Copy {
        const void* address;
        std::int64_t bytes;
        unsigned arrivals;
        std::function<void()> land;
    };

    std::vector<Mbarrier> barriers_;
    std::vector<Copy> copies_;
};

}  // namespace mednext_ops::emulation
