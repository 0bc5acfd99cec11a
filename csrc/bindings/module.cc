#include <pybind11/pybind11.h>

namespace recengine {

void bind_cuda(pybind11::module_& module);
void bind_device_array(pybind11::module_& module);
void bind_errors(pybind11::module_& module);
void bind_ops(pybind11::module_& module);
void bind_cuda_ops(pybind11::module_& module);
void bind_cuda_topk(pybind11::module_& module);
void bind_engine(pybind11::module_& module);
void bind_device_engine(pybind11::module_& module);

}  // namespace recengine

PYBIND11_MODULE(_native, module) {
  recengine::bind_errors(module);
  recengine::bind_cuda(module);
  recengine::bind_device_array(module);
  recengine::bind_ops(module);
  recengine::bind_cuda_ops(module);
  recengine::bind_cuda_topk(module);
  recengine::bind_engine(module);
  recengine::bind_device_engine(module);
}
