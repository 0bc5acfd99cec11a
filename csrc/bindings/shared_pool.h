#pragma once

#include "cpu/thread_pool.h"

namespace recengine {

// The process's pool for calls on `threads` threads, the caller being the last of them; null for 1.
// Made on first use and never destroyed. Throws InputError unless 1 <= threads <= 1024.
ThreadPool* shared_pool(int threads);

}  // namespace recengine
