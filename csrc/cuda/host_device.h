#pragma once

// Marks what host code and kernels share, in headers that a C++ compiler reads, too.
#ifdef __CUDACC__
#define RECENGINE_HOST_DEVICE __host__ __device__
#else
#define RECENGINE_HOST_DEVICE
#endif
