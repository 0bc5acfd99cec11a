#include "bindings/device_array.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "bindings/dlpack.h"
#include "recengine/cuda.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace recengine {
namespace {

constexpr const char* kCapsule = "dltensor";
constexpr const char* kUsedCapsule = "used_dltensor";
constexpr int64_t kLegacyStream = 1;  // how protocols name the legacy default stream

struct NamedType {
  const char* dtype;
  dlpack::DataType type;
};
constexpr NamedType kTypes[] = {
    {"<f4", {dlpack::kFloat, 32, 1}}, {"<f2", {dlpack::kFloat, 16, 1}},
    {"<f8", {dlpack::kFloat, 64, 1}}, {"bfloat16", {dlpack::kBfloat, 16, 1}},
    {"<i8", {dlpack::kInt, 64, 1}},   {"<i4", {dlpack::kInt, 32, 1}},
    {"<i2", {dlpack::kInt, 16, 1}},   {"|i1", {dlpack::kInt, 8, 1}},
    {"<u8", {dlpack::kUint, 64, 1}},  {"<u4", {dlpack::kUint, 32, 1}},
    {"<u2", {dlpack::kUint, 16, 1}},  {"|u1", {dlpack::kUint, 8, 1}},
    {"|b1", {dlpack::kBool, 8, 1}},
};

const NamedType& type_of(const std::string& dtype) {
  for (const NamedType& known : kTypes) {
    if (dtype == known.dtype) return known;
  }
  throw InputError("[device_array] dtype: expected a number or bool, found " + dtype);
}

std::string dtype_of(const dlpack::DataType& type) {
  for (const NamedType& known : kTypes) {
    if (known.type.code == type.code && known.type.bits == type.bits && type.lanes == 1) {
      return known.dtype;
    }
  }
  throw InputError("[device_array] dtype: expected a number or bool, found DLPack code " +
                   std::to_string(type.code) + " with " + std::to_string(type.bits) + " bits");
}

// `strides` in elements, or none.
void expect_c_order(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  int64_t expected = 1;
  bool plain = true;
  bool empty = false;
  for (size_t i = strides.size(); i-- > 0; expected *= shape[i]) {
    plain = plain && (shape[i] == 1 || strides[i] == expected);
    empty = empty || shape[i] == 0;
  }
  if (!plain && !empty) throw InputError("[device_array] expected an array in C order");
}

DeviceArray empty(std::vector<int64_t> shape, std::string dtype, int device, uintptr_t stream) {
  type_of(dtype);
  DeviceArray array{nullptr, std::move(shape), std::move(dtype), device, stream};
  array.data = allocate_on_device(array.bytes(), device, as_stream(stream));
  return array;
}

DeviceArray from_numpy(const py::array& values, int device, uintptr_t stream) {
  const py::array plain = py::array::ensure(values, py::array::c_style);
  std::vector<int64_t> shape(plain.shape(), plain.shape() + plain.ndim());
  DeviceArray array = empty(std::move(shape), py::str(plain.dtype().attr("str")), device, stream);
  copy_to_device(array.data.get(), plain.data(), array.bytes(), device, as_stream(stream));
  return array;
}

// Memory that `owner` owns, as __cuda_array_interface__ describes it.
DeviceArray from_pointer(uintptr_t pointer, std::vector<int64_t> shape, std::string dtype,
                         py::object owner) {
  type_of(dtype);
  DeviceArray array{nullptr, std::move(shape), std::move(dtype), 0, 0};
  auto* const data = reinterpret_cast<void*>(pointer);
  if (array.size() > 0) array.device = device_of(data);
  array.data = {data, [owner = std::move(owner)](void*) mutable {
                  const py::gil_scoped_acquire gil;
                  owner = py::object();
                }};
  return array;
}

DeviceArray from_dlpack(py::capsule capsule) {
  auto* const managed = capsule.get_pointer<dlpack::ManagedTensor>();
  const dlpack::Tensor& tensor = managed->tensor;
  if (tensor.device.type != dlpack::kCuda && tensor.device.type != dlpack::kCudaManaged) {
    throw InputError("[device_array] expected an array on a GPU");
  }
  DeviceArray array{nullptr,
                    {tensor.shape, tensor.shape + tensor.ndim},
                    dtype_of(tensor.dtype),
                    tensor.device.index,
                    0};
  if (tensor.strides != nullptr) {
    expect_c_order(array.shape, {tensor.strides, tensor.strides + tensor.ndim});
  }
  capsule.set_name(kUsedCapsule);  // the tensor is ours from here on
  array.data = {static_cast<char*>(tensor.data) + tensor.byte_offset, [managed](void*) {
                  const py::gil_scoped_acquire gil;
                  if (managed->deleter != nullptr) managed->deleter(managed);
                }};
  return array;
}

// The same array for a call on another stream: when the view goes, the array's own stream waits for
// what that one has got.
DeviceArray for_stream(const DeviceArray& self, uintptr_t stream) {
  DeviceArray view = self;
  const auto release = [held = self.data, device = self.device, own = self.stream,
                        stream](void*) mutable {
    try {
      order_after(device, as_stream(own), as_stream(stream));
    } catch (const RecengineError&) {  // the driver is gone, or the stream, or one is captured
    }
    held.reset();
  };
  view.data = {self.data.get(), release};
  return view;
}

// A tensor that keeps its array alive.
struct Exported {
  dlpack::ManagedTensor managed;
  DeviceArray array;
};

// `max_version` is what the caller understands at most; an unversioned tensor is below all.
py::capsule to_dlpack(const DeviceArray& self, const py::object& stream, const py::object&,
                      const std::optional<std::pair<int, int>>& device,
                      const std::optional<bool>& copy) {
  if (copy.value_or(false) || (device && *device != std::pair(dlpack::kCuda, self.device))) {
    throw py::buffer_error("[device_array] expected no copy, on its own device");
  }
  const int64_t consumer = stream.is_none() ? kLegacyStream : stream.cast<int64_t>();
  const int64_t own = self.stream == 0 ? kLegacyStream : static_cast<int64_t>(self.stream);
  if (consumer != -1 && (consumer == 0 ? kLegacyStream : consumer) != own) {
    order_after(self.device, as_stream(static_cast<uintptr_t>(consumer)), as_stream(self.stream));
  }
  auto exported = std::make_unique<Exported>();
  exported->array = self;
  DeviceArray& array = exported->array;
  exported->managed.tensor = {array.data.get(),
                              {dlpack::kCuda, array.device},
                              static_cast<int32_t>(array.shape.size()),
                              type_of(array.dtype).type,
                              array.shape.data(),
                              nullptr,
                              0};
  exported->managed.manager = exported.get();
  exported->managed.deleter = [](dlpack::ManagedTensor* tensor) {
    delete static_cast<Exported*>(tensor->manager);
  };
  dlpack::ManagedTensor* const tensor = &exported.release()->managed;
  return py::capsule(tensor, kCapsule, [](PyObject* object) {
    if (PyCapsule_IsValid(object, kCapsule) == 0) return;  // somebody took it
    auto* const left = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(object, kCapsule));
    left->deleter(left);
  });
}

py::array to_numpy(const DeviceArray& self) {
  if (self.dtype == "bfloat16") throw InputError("[device_array] NumPy has no bfloat16");
  py::array host(py::dtype(self.dtype), self.shape);
  void* const data = host.mutable_data();
  const py::gil_scoped_release release;
  if (self.size() > 0) {
    copy_to_host(data, self.data.get(), self.bytes(), self.device, as_stream(self.stream));
  }
  return host;
}

py::dict cuda_array_interface(const DeviceArray& self) {
  py::dict interface;
  interface["version"] = 3;
  interface["shape"] = py::tuple(py::cast(self.shape));
  interface["typestr"] = self.dtype;
  interface["data"] = py::make_tuple(reinterpret_cast<uintptr_t>(self.data.get()), false);
  interface["strides"] = py::none();
  interface["stream"] = self.stream == 0 ? kLegacyStream : static_cast<int64_t>(self.stream);
  return interface;
}

}  // namespace

int64_t DeviceArray::size() const {
  int64_t product = 1;
  for (const int64_t n : shape) product *= n;
  return product;
}

int64_t DeviceArray::bytes() const { return size() * type_of(dtype).type.bits / 8; }

void expect_array(const char* name, const DeviceArray& array, const char* dtype, size_t rank) {
  if (array.dtype != dtype) {
    throw InputError(std::string(name) + ": expected " + dtype + ", found " + array.dtype);
  }
  if (array.shape.size() != rank) {
    throw InputError(std::string(name) + ": expected rank " + std::to_string(rank) + ", found " +
                     std::to_string(array.shape.size()));
  }
  const auto address = reinterpret_cast<uintptr_t>(array.data.get());
  if (address % (type_of(array.dtype).type.bits / 8) != 0) {
    throw InputError(std::string(name) + ": expected data aligned to " + dtype);
  }
}

void bind_device_array(py::module_& module) {
  py::class_<DeviceArray>(module, "DeviceArray")
      .def_static("empty", &empty, "shape"_a, "dtype"_a, "device"_a, "stream"_a)
      .def_static("from_numpy", &from_numpy, "values"_a, "device"_a, "stream"_a)
      .def_static("from_pointer", &from_pointer, "pointer"_a, "shape"_a, "dtype"_a, "owner"_a)
      .def_static("from_dlpack", &from_dlpack, "capsule"_a)
      .def_property_readonly(
          "shape", [](const DeviceArray& self) { return py::tuple(py::cast(self.shape)); })
      .def_readonly("dtype", &DeviceArray::dtype)
      .def_readonly("device", &DeviceArray::device)
      .def_readonly("stream", &DeviceArray::stream)
      .def("for_stream", &for_stream, "stream"_a)
      .def("numpy", &to_numpy)
      .def("__dlpack__", &to_dlpack, py::kw_only(), "stream"_a = py::none(),
           "max_version"_a = py::none(), "dl_device"_a = py::none(), "copy"_a = py::none())
      .def("__dlpack_device__",
           [](const DeviceArray& self) { return py::make_tuple(dlpack::kCuda, self.device); })
      .def_property_readonly("__cuda_array_interface__", &cuda_array_interface);
}

}  // namespace recengine
