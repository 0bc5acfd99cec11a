#pragma once

// Inlines a function whatever GCC makes of its size: one whose values must stay in registers, or
// one that only prefetches, for GCC drops calls of what it takes to have no effect.
#define RECENGINE_INLINE inline __attribute__((always_inline))
