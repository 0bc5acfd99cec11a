#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bound.h"
#include "bindings/device_array.h"
#include "recengine/cuda.h"
#include "recengine/device_table.h"
#include "recengine/device_vocabulary.h"
#include "recengine/error.h"
#include "recengine/ops/embedding_bag.h"
#include "recengine/ops/order.h"
#include "recengine/stream_uses.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace recengine {
namespace {

// A table with the arrays that it borrows, if any.
struct BoundDeviceTable {
  DeviceTable table;
  std::optional<DeviceArray> data;
  std::optional<DeviceArray> scales;
  StreamUses uses;
};

struct BoundDeviceVocabulary {
  DeviceVocabulary vocabulary;
  StreamUses uses;
};

RowType row_type_of(const DeviceArray& data) {
  if (data.dtype == "<f4") return RowType::kFloat32;
  if (data.dtype == "<f2") return RowType::kFloat16;
  if (data.dtype == "<u2" || data.dtype == "bfloat16") return RowType::kBfloat16;
  if (data.dtype == "|i1") return RowType::kInt8;
  throw InputError(
      "[device_table] data: expected float32, float16, uint16 (bfloat16), bfloat16 or int8, "
      "found " +
      data.dtype);
}

void expect_rows(const DeviceArray& data) {
  expect_array("[device_table] data", data, data.dtype.c_str(), 2);
  if (data.shape[1] < 1 || data.shape[1] > INT32_MAX) {
    throw InputError("[device_table] data: expected dim at least 1, found " +
                     std::to_string(data.shape[1]));
  }
}

BoundDeviceTable copy_table(const BoundTable& table, int device) {
  const py::gil_scoped_release release;
  return {DeviceTable::copy(table.view, device), std::nullopt, std::nullopt, {}};
}

BoundDeviceTable spill_table(const BoundTable& table, int device, int64_t cache_bytes) {
  const py::gil_scoped_release release;
  return {DeviceTable::spill(table.view, device, cache_bytes), std::nullopt, std::nullopt, {}};
}

BoundDeviceTable borrow_table(std::string name, const DeviceArray& data,
                              const std::optional<DeviceArray>& scales) {
  expect_rows(data);
  const RowType type = row_type_of(data);
  const int64_t rows = data.shape[0];
  if ((type == RowType::kInt8) != scales.has_value()) {
    throw InputError("[device_table] scales: expected one per int8 row, none with other rows");
  }
  const Span<const float> values =
      scales ? device_span<const float>("[device_table] scales", *scales) : Span<const float>();
  if (scales && values.size != rows) {
    throw InputError("[device_table] scales: expected " + std::to_string(rows) + ", found " +
                     std::to_string(values.size));
  }
  return {DeviceTable::borrow(plain_table(std::move(name), data.data.get(), rows,
                                          static_cast<int32_t>(data.shape[1]), type, values.data)),
          data,
          scales,
          {}};
}

BoundDeviceTable borrow_fused_table(std::string name, const DeviceArray& data, int64_t dim,
                                    bool int4, bool rowwise) {
  expect_array("[device_table] data", data, "|u1", 2);
  if (dim < 1 || dim > INT32_MAX) {
    throw InputError("[device_table] dim: expected at least 1, found " + std::to_string(dim));
  }
  const EmbeddingTable table =
      fused_table(std::move(name), data.data.get(), data.shape[0], static_cast<int32_t>(dim),
                  int4 ? RowType::kFusedInt4 : RowType::kFusedInt8,
                  rowwise ? FusedLayout::kRowwise : FusedLayout::kTbe, data.shape[1]);
  return {DeviceTable::borrow(table), data, std::nullopt, {}};
}

int64_t refresh_table(const BoundDeviceTable& self) {
  const py::gil_scoped_release release;
  return self.table.refresh();
}

int64_t warm_table(const BoundDeviceTable& self, const Array<int64_t>& rows) {
  const Span<const int64_t> given = as_span("[device_table] rows", rows);
  const py::gil_scoped_release release;
  return self.table.warm(given);
}

// As the fields of recengine.ops.CacheStats.
py::tuple table_stats(const BoundDeviceTable& self) {
  CacheStats stats;
  {
    const py::gil_scoped_release release;
    stats = self.table.stats();
  }
  return py::make_tuple(stats.held, stats.refreshes, stats.samples, stats.sampled_hits);
}

int64_t bag_width(const std::vector<const BoundDeviceTable*>& tables,
                  const std::vector<std::string>& poolings,
                  const std::vector<int32_t>& max_lengths) {
  std::vector<const EmbeddingTable*> views;
  for (const BoundDeviceTable* bound : tables) views.push_back(&bound->table.view());
  return columns_width(make_columns(views, poolings, max_lengths));
}

void call_embedding_bag(const std::vector<BoundDeviceTable*>& tables,
                        const std::vector<std::string>& poolings,
                        const std::vector<int32_t>& max_lengths, const DeviceArray& rows,
                        const DeviceArray& lengths, const std::optional<DeviceArray>& weights,
                        const DeviceArray& out, int device, uintptr_t stream, bool check) {
  std::vector<const EmbeddingTable*> views;
  for (const BoundDeviceTable* bound : tables) {
    if (bound->table.device() != device) {
      throw InputError("[embedding_bag] table \"" + bound->table.view().name +
                       "\": expected it on cuda:" + std::to_string(device) +
                       ", found cuda:" + std::to_string(bound->table.device()));
    }
    views.push_back(&bound->table.view());
  }
  const std::vector<BagColumn> columns = make_columns(views, poolings, max_lengths);
  BagInput input;
  input.rows = device_span<const int64_t>("[embedding_bag] rows", rows);
  input.lengths = device_matrix<const int32_t>("[embedding_bag] lengths", lengths);
  if (weights) {
    const auto values = device_span<const float>("[embedding_bag] weights", *weights);
    if (values.size != input.rows.size) {
      throw InputError("[embedding_bag] weights: expected " + std::to_string(input.rows.size) +
                       ", found " + std::to_string(values.size));
    }
    input.weights = values.data;
  }
  const auto result = device_matrix<float>("[embedding_bag] out", out);
  if (result.rows != input.lengths.rows || result.cols != columns_width(columns)) {
    throw InputError("[embedding_bag] out: expected float32 [" +
                     std::to_string(input.lengths.rows) + ", " +
                     std::to_string(columns_width(columns)) + "], found (" +
                     std::to_string(result.rows) + ", " + std::to_string(result.cols) + ")");
  }
  const py::gil_scoped_release release;
  const StreamUse use(device, as_stream(stream));
  for (BoundDeviceTable* bound : tables) use.reads(bound->uses);
  embedding_bag_cuda({device, as_stream(stream), check}, columns, input, result);
}

void call_order(const DeviceArray& candidate_ids, const DeviceArray& scores,
                const DeviceArray& best_ids, const DeviceArray& best_scores, int device,
                uintptr_t stream, bool check) {
  const auto ids = device_matrix<const int64_t>("[order] candidate_ids", candidate_ids);
  const auto values = device_matrix<const float>("[order] scores", scores);
  const auto out_ids = device_matrix<int64_t>("[order] best_ids", best_ids);
  const auto out_scores = device_matrix<float>("[order] best_scores", best_scores);
  const py::gil_scoped_release release;
  order_cuda({device, as_stream(stream), check}, ids, values, out_ids, out_scores);
}

void call_lookup(BoundDeviceVocabulary& self, const DeviceArray& ids, const DeviceArray& rows,
                 uintptr_t stream) {
  expect_array("[vocabulary] ids", ids, kDtype<int64_t>, ids.shape.size());
  expect_array("[vocabulary] rows", rows, kDtype<int64_t>, rows.shape.size());
  const py::gil_scoped_release release;
  const StreamUse use(self.vocabulary.device(), as_stream(stream), self.uses);
  self.vocabulary.lookup(as_stream(stream),
                         {static_cast<const int64_t*>(ids.data.get()), ids.size()},
                         {static_cast<int64_t*>(rows.data.get()), rows.size()});
}

}  // namespace

void bind_cuda_ops(py::module_& module) {
  // Their destructors wait for the work that reads them.
  const py::release_gil_before_calling_cpp_dtor waits;
  py::class_<BoundDeviceTable>(module, "DeviceTable", waits)
      .def_static("copy", &copy_table, "table"_a, "device"_a)
      .def_static("spill", &spill_table, "table"_a, "device"_a, "cache_bytes"_a)
      .def_static("borrow", &borrow_table, "name"_a, "data"_a, "scales"_a)
      .def_static("borrow_fused", &borrow_fused_table, "name"_a, "data"_a, "dim"_a, "int4"_a,
                  "rowwise"_a)
      .def("refresh", &refresh_table)
      .def("warm", &warm_table, py::arg("rows").noconvert())
      .def("stats", &table_stats)
      .def_property_readonly("name",
                             [](const BoundDeviceTable& self) { return self.table.view().name; })
      .def_property_readonly("rows",
                             [](const BoundDeviceTable& self) { return self.table.view().rows; })
      .def_property_readonly("dim",
                             [](const BoundDeviceTable& self) { return self.table.view().dim; })
      .def_property_readonly("device",
                             [](const BoundDeviceTable& self) { return self.table.device(); });
  py::class_<BoundDeviceVocabulary>(module, "DeviceVocabulary", waits)
      .def(py::init([](const BoundVocabulary& vocabulary, int device) {
             const py::gil_scoped_release release;
             return BoundDeviceVocabulary{DeviceVocabulary(vocabulary.vocabulary, device), {}};
           }),
           "vocabulary"_a, "device"_a)
      .def_property_readonly(
          "size", [](const BoundDeviceVocabulary& self) { return self.vocabulary.size(); })
      .def_property_readonly(
          "device", [](const BoundDeviceVocabulary& self) { return self.vocabulary.device(); })
      .def("lookup", &call_lookup, "ids"_a, "rows"_a, "stream"_a);
  module.def("bag_width", &bag_width, "tables"_a, "poolings"_a, "max_lengths"_a);
  module.def("embedding_bag_cuda", &call_embedding_bag, "tables"_a, "poolings"_a, "max_lengths"_a,
             "rows"_a, "lengths"_a, "weights"_a, "out"_a, "device"_a, "stream"_a, "check"_a);
  module.def("order_cuda", &call_order, "candidate_ids"_a, "scores"_a, "best_ids"_a,
             "best_scores"_a, "device"_a, "stream"_a, "check"_a);
}

}  // namespace recengine
