#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "cuda/relaxed_capture.h"

namespace recengine::cuda {

// What the last owner gives back with free(resource), on its device; while some thread captures a
// graph, too, if that waits for nothing. At the end of the process the driver may be gone, and the
// resource with it.
template <typename Free>
std::shared_ptr<void> owned(void* resource, int device, Free free) {
  return {resource, [=](void* held) {
            int before = 0;
            if (held == nullptr || cudaGetDevice(&before) != cudaSuccess) return;
            const RelaxedCapture relaxed(std::nothrow);
            cudaSetDevice(device);
            free(held);
            cudaSetDevice(before);
          }};
}

}  // namespace recengine::cuda
