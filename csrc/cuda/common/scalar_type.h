// The name of an element type, for code on the host that includes no CUDA header.
#pragma once

namespace mednext_ops::cuda {

enum class ScalarType { float32, float16, bfloat16 };

}  // namespace mednext_ops::cuda
