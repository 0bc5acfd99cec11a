#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/bundle_files.h"
#include "engine/manifest.h"
#include "recengine/engine.h"

namespace recengine {

// What a stage hands to its graph and takes from it; dims are fixed or kDynamicDim.
struct GraphSignature {
  std::vector<GraphTensor> inputs;  // [batch, ...]
  GraphTensor output;               // [batch, cols]
  int64_t usual_cols = 0;           // of most outputs, where the graph leaves them open; 0: unknown
};

// One fp32 argument of a run; borrowed.
struct GraphArgument {
  const float* data;
  std::vector<int64_t> shape;
};

// A dense graph compiled by OpenVINO for this CPU, once for any shape and once for each of a few
// batch sizes: a small graph spends more time on a new shape than on its work. Immutable; run() may
// be called by many threads, of which options.num_streams compute at a time. Rows of a batch may
// run on several threads, split in the same way for any number of them.
class DenseGraph {
 public:
  // Reads the graph from verified memory, which must outlive it. Throws BundleError when the
  // manifest does not describe `signature`, CompileError when OpenVINO refuses the graph or its
  // tensors are not those of the signature.
  DenseGraph(const std::string& name, const GraphSpec& spec, const GraphSignature& signature,
             const BundleFiles& files, const EngineOptions& options);
  ~DenseGraph();

  // `inputs` in the order of the signature.
  void run(const std::vector<GraphArgument>& inputs, Matrix<float> output) const;

 private:
  struct Compiled;

  ThreadPool* pool_;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace recengine
