#pragma once

#include <cstdint>

namespace recengine::triton {

// Copies from memory of a GPU, or of the host, to memory of the host. A graph's model on a GPU
// leaves its output there, whatever the next step of an ensemble runs on. The copy is done by the
// CUDA runtime that the server itself is linked to, so that a build without CUDA can do it, too.
// Throws StatusError when the server has none, or the copy fails.
void copy_to_host(void* to, const void* from, uint64_t bytes, bool is_gpu);

}  // namespace recengine::triton
