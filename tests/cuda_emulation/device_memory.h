#pragma once

// Device memory of the emulated GPU. It is host memory that only kernels and copies may touch: at
// any other time it is protected, so that host code which follows a pointer to it crashes, as it
// does with a GPU. Under AddressSanitizer it is ordinary memory, whose bounds are watched.

#include <cstddef>

namespace cuda_emulation {

constexpr size_t kDeviceBytes = size_t{16} << 30;

// Null when there is no memory left.
void* take_device_memory(size_t bytes);

// False when `pointer` is not what take_device_memory() gave.
bool give_back_device_memory(void* pointer);

bool on_device(const void* pointer, size_t bytes);
size_t device_bytes_taken();

// While one lives, any thread may touch device memory.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace cuda_emulation
