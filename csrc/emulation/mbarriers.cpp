#include "mbarriers.h"

#include <algorithm>
#include <iterator>
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
    copies_.push_back({address, bytes, 0, std::move(land)});
}

void Mbarriers::issue_arrival(const void* address, std::function<void()> land) {
    copies_.push_back({address, 0, 1, std::move(land)});
}

void Mbarriers::land(Mbarrier& barrier) {
    const auto is_other = [&](const Copy& copy) { return copy.address != barrier.address; };
    if (std::all_of(copies_.begin(), copies_.end(), is_other)) return;
    const auto first = std::stable_partition(copies_.begin(), copies_.end(), is_other);
    std::vector<Copy> landing(std::make_move_iterator(first), std::make_move_iterator(copies_.end()));
    copies_.erase(first, copies_.end());
    for (Copy& copy : landing) {
        copy.land();
        barrier.missing_bytes -= copy.bytes;
        barrier.missing_arrivals -= copy.arrivals;
    }
    barrier.advance();
}

void Mbarriers::clear() {
    barriers_.clear();
    copies_.clear();
}

}  // namespace mednext_ops::emulation
