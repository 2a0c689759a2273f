#include "mbarriers.h"

#include <utility>

namespace mednext_ops::emulation {

void Mbarriers::initialise(const void* address, unsigned arrivals) {
    const Mbarrier fresh{address, arrivals, arrivals, 0, 0};
    if (Mbarrier* known = find(address)) {
        *known = fresh;
    } else {
        barriers_.push_back(fresh);
    }
}

Mbarrier* Mbarriers::find(const void* address) {
    for (Mbarrier& barrier : barriers_) {
        if (barrier.address == address) return &barrier;
    }
    return nullptr;
}

void Mbarriers::issue(const void* address, std::int64_t bytes, std::function<void()> land) {
    copies_.push_back({address, bytes, std::move(land)});
}

void Mbarriers::land(Mbarrier& barrier) {
    std::vector<Copy> others;
    std::int64_t landed = 0;
    for (Copy& copy : copies_) {
        if (copy.address == barrier.address) {
            copy.land();
            landed += copy.bytes;
        } else {
            others.push_back(std::move(copy));
        }
    }
    copies_ = std::move(others);
    if (landed == 0) return;
    barrier.missing_bytes -= landed;
    barrier.advance();
}

void Mbarriers::clear() {
    barriers_.clear();
    copies_.clear();
}

}  // namespace mednext_ops::emulation
