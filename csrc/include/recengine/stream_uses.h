#pragma once

#include <memory>
#include <vector>

#include "recengine/cuda.h"

namespace recengine {

class StreamMark;  // how far a stream must come

// The streams whose work reads memory that is freed after this: it waits for them as it ends.
// cudaFree only "may" wait (CUDA Runtime API). What a captured graph reads, its owner keeps.
class StreamUses {
 public:
  StreamUses() = default;
  StreamUses(StreamUses&&) = default;
  StreamUses& operator=(StreamUses&&) = delete;
  ~StreamUses();

 private:
  friend class StreamUse;

  std::vector<std::shared_ptr<StreamMark>> marks_;  // one for each stream
};

// Work that is put on a stream while this lives.
class StreamUse {
 public:
  StreamUse(int device, CudaStream stream);
  StreamUse(int device, CudaStream stream, StreamUses& uses) : StreamUse(device, stream) {
    reads(uses);
  }
  ~StreamUse();
  StreamUse(const StreamUse&) = delete;
  StreamUse& operator=(const StreamUse&) = delete;

  // Notes that the work reads what these are of.
  void reads(StreamUses& uses) const;

 private:
  CudaStream stream_;
  std::shared_ptr<StreamMark> mark_;  // null while the stream is captured
};

}  // namespace recengine
