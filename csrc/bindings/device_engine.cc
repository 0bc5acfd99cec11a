#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "bindings/arrays.h"
#include "bindings/device_array.h"
#include "bindings/shared_pool.h"
#include "bindings/wire_users.h"
#include "recengine/engine.h"
#include "recengine/stream_uses.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace recengine {
namespace {

CandidateBatch as_candidates(const DeviceArray& candidates, const DeviceArray& scores) {
  return {device_matrix<const int64_t>("[ranking] candidates", candidates),
          device_matrix<const float>("[ranking] candidate_scores", scores)};
}

Recommendations as_answer(const DeviceArray& item_ids, const DeviceArray& scores) {
  return {device_matrix<int64_t>("[engine] item_ids", item_ids),
          device_matrix<float>("[engine] scores", scores)};
}

// Results are arrays of the caller, in the shapes of widths().
class PyDeviceEngine {
 public:
  PyDeviceEngine(const std::string& directory, int device, int64_t table_bytes) {
    EngineOptions options;
    options.pool = shared_pool(usable_cores());
    options.device = device;
    options.device_table_bytes = table_bytes;
    const py::gil_scoped_release release;
    engine_ = Engine::load(directory, options);
  }

  py::dict schema() const { return as_dict(engine_->schema()); }
  py::dict memory() const { return as_dict(engine_->memory()); }

  py::dict widths() const {
    const GraphWidths widths = engine_->widths();
    return py::dict("retrieval_sparse"_a = widths.retrieval_sparse, "user"_a = widths.user,
                    "ranking_sparse"_a = widths.ranking_sparse, "item"_a = widths.item);
  }

  void look_up(const Array<int64_t>& ids, const Array<int32_t>& lengths, const Array<float>& dense,
               const DeviceArray& sparse, uintptr_t stream) {
    const WireUsers users = as_users(ids, lengths, dense);
    const auto out = device_matrix<float>("[retrieval] sparse", sparse);
    const py::gil_scoped_release release;
    const StreamUse use(engine_->device(), as_stream(stream), uses_);
    check(engine_->schema(), users);
    engine_->look_up(Rows(users).batch(), out, {as_stream(stream)});
  }

  void look_up_candidates(const Array<int64_t>& ids, const Array<int32_t>& lengths,
                          const Array<float>& dense, const DeviceArray& candidates,
                          const DeviceArray& candidate_scores, const DeviceArray& sparse,
                          const DeviceArray& items, const DeviceArray& item_scores,
                          uintptr_t stream) {
    const WireUsers users = as_users(ids, lengths, dense);
    const CandidateBatch batch = as_candidates(candidates, candidate_scores);
    expect_array("[ranking] items", items, kDtype<float>, 3);
    const RankerInputs out = {
        device_matrix<float>("[ranking] sparse", sparse),
        {static_cast<float*>(items.data.get()), items.shape[0] * items.shape[1], items.shape[2]},
        device_matrix<float>("[ranking] item_scores", item_scores)};
    const py::gil_scoped_release release;
    const StreamUse use(engine_->device(), as_stream(stream), uses_);
    check(engine_->schema(), users, batch, /*on_host=*/false);
    engine_->look_up(Rows(users).batch(), batch, out, {as_stream(stream)});
  }

  void search(const Array<int64_t>& ids, const Array<int32_t>& lengths, const Array<float>& dense,
              const DeviceArray& vectors, const DeviceArray& item_ids, const DeviceArray& scores,
              uintptr_t stream) {
    const WireUsers users = as_users(ids, lengths, dense);
    const auto given = device_matrix<const float>("[retrieval] user", vectors);
    const Recommendations out = as_answer(item_ids, scores);
    const py::gil_scoped_release release;
    const StreamUse use(engine_->device(), as_stream(stream), uses_);
    check(engine_->schema(), users, given, engine_->widths().user);
    engine_->search(Rows(users).batch(), given, out, {as_stream(stream)});
  }

  void order(const Array<int64_t>& ids, const Array<int32_t>& lengths, const Array<float>& dense,
             const DeviceArray& candidates, const DeviceArray& candidate_scores,
             const DeviceArray& graph_scores, const DeviceArray& item_ids,
             const DeviceArray& scores, uintptr_t stream) {
    const WireUsers users = as_users(ids, lengths, dense);
    const CandidateBatch batch = as_candidates(candidates, candidate_scores);
    const auto given = device_matrix<const float>("[ranking] graph_scores", graph_scores);
    const Recommendations out = as_answer(item_ids, scores);
    const py::gil_scoped_release release;
    const StreamUse use(engine_->device(), as_stream(stream), uses_);
    check(engine_->schema(), users, batch, given, /*on_host=*/false);
    engine_->order(Rows(users).batch(), batch, given, out, {as_stream(stream)});
  }

 private:
  std::unique_ptr<Engine> engine_;
  StreamUses uses_;
};

}  // namespace

void bind_device_engine(py::module_& module) {
  const auto ids = "ids"_a.noconvert();
  const auto lengths = "lengths"_a.noconvert();
  const auto dense = "dense"_a.noconvert();
  // Its destructor waits for the work that reads it.
  py::class_<PyDeviceEngine>(module, "DeviceEngine", py::release_gil_before_calling_cpp_dtor())
      .def(py::init<const std::string&, int, int64_t>(), "directory"_a, "device"_a, "table_bytes"_a)
      .def_property_readonly("schema", &PyDeviceEngine::schema)
      .def_property_readonly("memory", &PyDeviceEngine::memory)
      .def_property_readonly("widths", &PyDeviceEngine::widths)
      .def("look_up", &PyDeviceEngine::look_up, ids, lengths, dense, "sparse"_a, "stream"_a)
      .def("look_up_candidates", &PyDeviceEngine::look_up_candidates, ids, lengths, dense,
           "candidates"_a, "candidate_scores"_a, "sparse"_a, "items"_a, "item_scores"_a, "stream"_a)
      .def("search", &PyDeviceEngine::search, ids, lengths, dense, "vectors"_a, "item_ids"_a,
           "scores"_a, "stream"_a)
      .def("order", &PyDeviceEngine::order, ids, lengths, dense, "candidates"_a,
           "candidate_scores"_a, "graph_scores"_a, "item_ids"_a, "scores"_a, "stream"_a);
}

}  // namespace recengine
