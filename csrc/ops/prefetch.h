#pragma once

// For a function that does nothing but prefetch. Such a one has no effect for GCC, which drops its
// calls, unless it is inlined before that is found out.
#define RECENGINE_PREFETCHES __attribute__((always_inline)) inline
