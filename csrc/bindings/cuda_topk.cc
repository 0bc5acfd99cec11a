#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/bound.h"
#include "bindings/device_array.h"
#include "bindings/shared_pool.h"
#include "recengine/context.h"
#include "recengine/device_item_index.h"
#include "recengine/ops/cosine_topk.h"
#include "recengine/stream_uses.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace recengine {
namespace {

struct BoundDeviceIndex {
  DeviceItemIndex index;
  StreamUses uses;
};

BoundDeviceIndex copy_index(const BoundIndex& index, int device) {
  const py::gil_scoped_release release;
  return {DeviceItemIndex::copy(index.index, device, shared_pool(usable_cores())), {}};
}

// Words are taken with and without a sign, which not every framework has.
Span<uint64_t> bitmap_span(const DeviceArray& array) {
  const char* const name = "[cosine_topk] allow";
  expect_array(name, array, array.dtype == "<u8" ? "<u8" : "<i8", 1);
  return {static_cast<uint64_t*>(array.data.get()), array.shape[0]};
}

// `certificates` is int64 [batch, 3], the bytes of TopKCertificates.
void call_cosine_topk(BoundDeviceIndex& bound, const DeviceArray& queries,
                      const std::optional<DeviceArray>& exclude_rows,
                      const std::optional<DeviceArray>& exclude_lengths,
                      const std::optional<DeviceArray>& allow_bitmap, const DeviceArray& rows,
                      const DeviceArray& scores, const std::optional<DeviceArray>& certificates,
                      int device, uintptr_t stream, bool check) {
  const DeviceItemIndex& index = bound.index;
  TopKQuery query;
  query.queries = device_matrix<const float>("[cosine_topk] queries", queries);
  if (exclude_rows) {
    query.exclude_rows = device_span<const int64_t>("[cosine_topk] exclude_rows", *exclude_rows);
  }
  if (exclude_lengths) {
    query.exclude_lengths =
        device_span<const int32_t>("[cosine_topk] exclude_lengths", *exclude_lengths);
  }
  if (allow_bitmap) {
    query.allow_bitmap = bitmap_span(*allow_bitmap);
    // An array of no words has no address, which would mean that all rows are allowed.
    const int64_t words = (index.rows() + 63) / 64;
    if (query.allow_bitmap.size != words) {
      throw InputError("[cosine_topk] allow: expected " + std::to_string(words) + " words, found " +
                       std::to_string(query.allow_bitmap.size));
    }
  }
  TopKCertificate* filled = nullptr;
  if (certificates) {
    static_assert(sizeof(TopKCertificate) == 3 * sizeof(int64_t));
    filled = static_cast<TopKCertificate*>(certificates->data.get());
  }
  const auto out_rows = device_matrix<int64_t>("[cosine_topk] rows", rows);
  const auto out_scores = device_matrix<float>("[cosine_topk] scores", scores);
  const py::gil_scoped_release release;
  const StreamUse use(device, as_stream(stream), bound.uses);
  cosine_topk_cuda({device, as_stream(stream), check}, index, query, out_rows, out_scores, filled);
}

void call_pack_bitmap(const DeviceArray& mask, const DeviceArray& words, int device,
                      uintptr_t stream) {
  expect_array("[cosine_topk] allow", mask, "|b1", 1);
  const py::gil_scoped_release release;
  pack_bitmap_cuda({device, as_stream(stream), false},
                   {static_cast<const uint8_t*>(mask.data.get()), mask.shape[0]},
                   bitmap_span(words));
}

}  // namespace

void bind_cuda_topk(py::module_& module) {
  // Its destructor waits for the work that reads it.
  py::class_<BoundDeviceIndex>(module, "DeviceItemIndex", py::release_gil_before_calling_cpp_dtor())
      .def_static("copy", &copy_index, "index"_a, "device"_a)
      .def_property_readonly("rows", [](const BoundDeviceIndex& self) { return self.index.rows(); })
      .def_property_readonly("dim", [](const BoundDeviceIndex& self) { return self.index.dim(); })
      .def_property_readonly("device",
                             [](const BoundDeviceIndex& self) { return self.index.device(); });
  module.def("cosine_topk_cuda", &call_cosine_topk, "index"_a, "queries"_a, "exclude_rows"_a,
             "exclude_lengths"_a, "allow_bitmap"_a, "rows"_a, "scores"_a, "certificates"_a,
             "device"_a, "stream"_a, "check"_a);
  module.def("pack_bitmap_cuda", &call_pack_bitmap, "mask"_a, "words"_a, "device"_a, "stream"_a);
}

}  // namespace recengine
