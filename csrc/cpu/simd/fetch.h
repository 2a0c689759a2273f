// What a task reads next, fetched into the second-level cache between the arithmetic on what it has: a few lines at a
// time, channel by channel, so that the machine's own prefetching follows the runs.
#pragma once

#include "block.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

class Fetch {
  public:
    // Forgets what was not fetched yet.
    MEDNEXT_OPS_INLINE void restart() { next_ = count_ = 0; }

    // Voxels [voxel, voxel + count) of channels [channel, channel + channels), those that exist; at most four of these.
    template <typename T>
    MEDNEXT_OPS_INLINE void add(const Volume& volume, std::int64_t sample, std::int64_t channel, std::int64_t channels,
                                std::int64_t voxel, std::int64_t count) {
        channels = at_most(channels, volume.channels - channel);
        count = at_most(count, volume.voxels - voxel);
        if (volume.data == nullptr || channels <= 0 || voxel < 0 || count <= 0) return;
        const std::int64_t size = sizeof(T);
        const std::int64_t first = volume.channels_last ? (sample * volume.voxels + voxel) * volume.channels + channel
                                                        : (sample * volume.channels + channel) * volume.voxels + voxel;
        Run run{static_cast<const char*>(volume.data) + first * size, channels, volume.voxels * size, count * size, 0};
        if (volume.channels_last) {
            const bool whole = channels == volume.channels;
            run.rows = whole ? 1 : count;
            run.distance = volume.channels * size;
            run.bytes = channels * size * (whole ? count : 1);
        }
        runs_[count_++] = run;
    }

    // Fetches the next `lines` lines.
    MEDNEXT_OPS_INLINE void some(std::int64_t lines) {
        for (; lines > 0 && next_ < count_; --lines) {
            Run& run = runs_[next_];
            __builtin_prefetch(run.row + run.at, 0, 2);
            run.at += kLine;
            if (run.at < run.bytes) continue;
            run.at = 0;
            run.row += run.distance;
            if (--run.rows == 0) ++next_;
        }
    }

  private:
    static constexpr std::int64_t kLine = 64;

    struct Run {
        const char* row;
        std::int64_t rows, distance, bytes;  // rows that are left, the distance between two, and what to fetch of each
        std::int64_t at;                     // bytes of this row that were fetched
    };

    Run runs_[4];
    int count_ = 0, next_ = 0;
};

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
