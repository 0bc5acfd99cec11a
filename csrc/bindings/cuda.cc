#include "recengine/cuda.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace recengine {

namespace py = pybind11;

void bind_cuda(py::module_& m) {
  m.def("cuda_built", &cuda_built);
  m.def("cuda_devices", [] {
    std::vector<std::string> names;
    for (const CudaDevice& device : cuda_devices()) {
      names.push_back(device.name + ", compute capability " + std::to_string(device.major) + "." +
                      std::to_string(device.minor) + ", " +
                      std::to_string(device.memory_bytes >> 20) + " MiB");
    }
    return names;
  });
}

}  // namespace recengine
