#include "recengine/cuda.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/device_array.h"
#include "recengine/error.h"

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
  m.def(
      "device_of",
      [](uintptr_t pointer) {
        const int device = device_of(reinterpret_cast<const void*>(pointer));
        if (device < 0) throw InputError("expected memory of a GPU, found that of the host");
        return device;
      },
      py::arg("pointer"));
  m.def(
      "order_after",
      [](int device, uintptr_t stream, uintptr_t other) {
        order_after(device, as_stream(stream), as_stream(other));
      },
      py::arg("device"), py::arg("stream"), py::arg("other"));
}

}  // namespace recengine
