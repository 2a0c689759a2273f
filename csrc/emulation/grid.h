// Runs the blocks of a launch, several at a time where the settings allow it.
#pragma once

#include <driver_types.h>

#include "block.h"

namespace mednext_ops::emulation {

// What the device would refuse comes back as its error, before anything runs; what goes wrong in a kernel is thrown as
// an EmulationError, of the first such block in the order of the run.
cudaError_t run_grid(const Launch& launch);

}  // namespace mednext_ops::emulation
