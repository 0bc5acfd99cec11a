#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/owned.h"
#include "cuda/stream.h"
#include "recengine/cuda.h"

namespace recengine {
namespace {

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using GraphPtr = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, DestroyGraph>;

// Relaxed: a call that takes memory is not part of the graph and does not disturb it.
GraphPtr capture(cudaStream_t stream, const std::function<void()>& work) {
  RECENGINE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    const GraphPtr unused(graph);
    throw;
  }
  const cudaError_t status = cudaStreamEndCapture(stream, &graph);
  GraphPtr captured(graph);
  cuda::check(status, "cudaStreamEndCapture");
  return captured;
}

}  // namespace

DeviceGraph::DeviceGraph(int device, CudaStream stream, const std::function<void()>& work)
    : device_(device) {
  const cuda::DeviceGuard guard(device);
  try {
    const GraphPtr captured = capture(cuda::as_stream(stream), work);
    cudaGraphExec_t graph = nullptr;
    RECENGINE_CUDA_CHECK(cudaGraphInstantiate(&graph, captured.get(), 0));
    graph_ = cuda::owned(graph, device, [](void* ended) {
      cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(ended));
    });
  } catch (...) {
    cudaGetLastError();  // who asks later must not be told of this
    throw;
  }
}

void DeviceGraph::launch(CudaStream stream) const {
  const cuda::DeviceGuard guard(device_);
  RECENGINE_CUDA_CHECK(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_.get()), cuda::as_stream(stream)));
}

}  // namespace recengine
