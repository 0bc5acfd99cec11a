#include <cuda_runtime_api.h>

#include <functional>

#include "cuda/launch.h"
#include "recengine/cuda.h"

namespace recengine {
namespace {

cudaStream_t as_stream(CudaStream stream) { return static_cast<cudaStream_t>(stream); }

struct OwnedGraph {
  cudaGraph_t graph = nullptr;

  OwnedGraph() = default;
  OwnedGraph(const OwnedGraph&) = delete;
  OwnedGraph& operator=(const OwnedGraph&) = delete;
  ~OwnedGraph() {
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
};

// Relaxed: a call that takes memory is not part of the graph and does not disturb it.
void capture(cudaStream_t stream, const std::function<void()>& work, OwnedGraph& owned) {
  RECENGINE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &owned.graph);
    throw;
  }
  RECENGINE_CUDA_CHECK(cudaStreamEndCapture(stream, &owned.graph));
}

cudaGraphExec_t make_graph(cudaStream_t stream, const std::function<void()>& work) {
  OwnedGraph captured;
  capture(stream, work, captured);
  cudaGraphExec_t graph = nullptr;
  RECENGINE_CUDA_CHECK(cudaGraphInstantiate(&graph, captured.graph, 0));
  return graph;
}

}  // namespace

DeviceGraph::DeviceGraph(int device, CudaStream stream, const std::function<void()>& work)
    : device_(device) {
  const cuda::DeviceGuard guard(device);
  try {
    graph_ = make_graph(as_stream(stream), work);
  } catch (...) {
    cudaGetLastError();  // who asks later must not be told of this
    throw;
  }
}

// At the end of the process the driver may be gone, and the graph with it.
DeviceGraph::~DeviceGraph() {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess) return;
  cudaSetDevice(device_);
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
  cudaSetDevice(before);
}

void DeviceGraph::launch(CudaStream stream) const {
  const cuda::DeviceGuard guard(device_);
  RECENGINE_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), as_stream(stream)));
}

}  // namespace recengine
