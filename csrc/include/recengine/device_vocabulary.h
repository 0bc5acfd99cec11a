#pragma once

#include <memory>

#include "recengine/cuda.h"
#include "recengine/vocabulary.h"

namespace recengine {

// A vocabulary whose slots lie in the memory of a GPU; immutable, shared by all calls.
class DeviceVocabulary {
 public:
  DeviceVocabulary(const Vocabulary& vocabulary, int device);

  int64_t size() const { return view_.size(); }
  int device() const { return device_; }

  // rows[i] = row(ids[i]), both on the device. There is nothing to check.
  void lookup(CudaStream stream, Span<const int64_t> ids, Span<int64_t> rows) const;

 private:
  Vocabulary view_;  // the slots are on the device
  int device_;
  std::shared_ptr<void> slot_keys_;
  std::shared_ptr<void> slot_rows_;
};

}  // namespace recengine
