"""NVIDIA's libraries as far as recengine asks them, compiled from C when they are wanted.

The driver is of one made-up GPU, whose memory is the host's.
"""

import subprocess

DRIVER = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { kDevice = 40, kInvalidDevice = 101, kOutOfMemory = 2 };

int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = kDevice + ordinal; return 0; }
int cuDriverGetVersion(int *version) { *version = 12090; return 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1;
  return device == kDevice ? 0 : kInvalidDevice;
}

int cuDeviceGetName(char *name, int bytes, int device) {
  strncpy(name, "NVIDIA L4", bytes);
  return device == kDevice ? 0 : kInvalidDevice;
}

static int context;
int cuDevicePrimaryCtxRetain(void **result, int device) {
  *result = &context;
  return device == kDevice ? 0 : kInvalidDevice;
}
int cuCtxSetCurrent(void *given) { return given == &context ? 0 : 1; }

// Addresses do not fit in 32 bits, as those of a GPU.
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  *address = bytes < (1ull << 40) ? (uint64_t)malloc(bytes) : 0;
  return *address ? 0 : kOutOfMemory;
}
int cuMemFree_v2(uint64_t address) { free((void *)address); return 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
  memcpy((void *)to, from, bytes);
  return 0;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
  memcpy(to, (const void *)from, bytes);
  return 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  memcpy((void *)to, (const void *)from, bytes);
  return stream == 0 ? 0 : 1;
}
int cuCtxSynchronize(void) { return 0; }
"""

TENSORRT = """
int getInferLibMajorVersion(void) { return 10; }
int getInferLibMinorVersion(void) { return 16; }
int getInferLibPatchVersion(void) { return 1; }
int getInferLibBuildVersion(void) { return 11; }
"""


def build_driver(path, status=0, count=1):
    """Compiles the driver; cuInit answers `status`, there are `count` GPUs."""
    return build_library(path, DRIVER, f"-DSTATUS={status}", f"-DCOUNT={count}")


def build_tensorrt(folder):
    """Compiles the part of TensorRT 10.16.1.11 that tells its version."""
    return build_library(folder / "libnvinfer.so.10", TENSORRT)


def build_library(path, source, *flags):
    """Compiles C to a shared library and gives its path."""
    command = ["cc", "-x", "c", "-", "-shared", "-fPIC", *flags, "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)
    return str(path)
