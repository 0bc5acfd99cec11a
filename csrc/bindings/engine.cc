#include "recengine/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/shared_pool.h"
#include "bindings/wire_users.h"
#include "engine/sha256.h"
#include "recengine/context.h"

namespace py = pybind11;

namespace recengine {
namespace {

using Inputs = py::typing::Tuple<Array<float>, Array<float>, Array<float>>;
using Ranked = py::typing::Tuple<Array<int64_t>, Array<float>>;

// Runs call(out) without the GIL and gives (item ids, scores), [batch, k] each.
template <typename Call>
Ranked answer(int64_t batch, int64_t k, const Call& call) {
  Array<int64_t> item_ids({batch, k});
  Array<float> scores({batch, k});
  const Recommendations out = {as_output(item_ids), as_output(scores)};
  {
    const py::gil_scoped_release release;
    call(out);
  }
  return py::make_tuple(std::move(item_ids), std::move(scores));
}

CandidateBatch as_candidates(const Array<int64_t>& candidates,
                             const Array<float>& candidate_scores) {
  return {as_matrix("[engine] candidates", candidates),
          as_matrix("[engine] candidate_scores", candidate_scores)};
}

class PyEngine {
 public:
  PyEngine(const std::string& directory, std::optional<int> threads, std::optional<bool> resident) {
    const int count = threads ? *threads : usable_cores();
    EngineOptions options;
    options.pool = shared_pool(count);
    options.num_streams = count;
    if (resident) options.resident = *resident ? Residence::kAll : Residence::kNone;
    const py::gil_scoped_release release;
    engine_ = Engine::load(directory, options);
  }

  py::dict schema() const { return as_dict(engine_->schema()); }

  py::dict memory() const { return as_dict(engine_->memory()); }

  bool has_retrieval() const { return engine_->has(Stage::kRetrieval); }
  bool has_ranking() const { return engine_->has(Stage::kRanking); }

  Ranked retrieve(const Array<int64_t>& ids, const Array<int32_t>& lengths,
                  const Array<float>& dense, int64_t k) const {
    const WireUsers users = as_users(ids, lengths, dense);
    return answer(users.ids.rows, k, [&](Recommendations out) {
      check(engine_->schema(), users);
      engine_->retrieve(Rows(users).batch(), out);
    });
  }

  Ranked rank(const Array<int64_t>& ids, const Array<int32_t>& lengths, const Array<float>& dense,
              const Array<int64_t>& candidates, const Array<float>& candidate_scores,
              int64_t k) const {
    const WireUsers users = as_users(ids, lengths, dense);
    const CandidateBatch items = as_candidates(candidates, candidate_scores);
    return answer(users.ids.rows, k, [&](Recommendations out) {
      check(engine_->schema(), users, items);
      engine_->rank(Rows(users).batch(), items, out);
    });
  }

  Ranked recommend(const Array<int64_t>& ids, const Array<int32_t>& lengths,
                   const Array<float>& dense, int64_t k, int64_t num_candidates) const {
    const WireUsers users = as_users(ids, lengths, dense);
    return answer(users.ids.rows, k, [&](Recommendations out) {
      check(engine_->schema(), users);
      engine_->recommend(Rows(users).batch(), num_candidates, out);
    });
  }

  Array<float> look_up(const Array<int64_t>& ids, const Array<int32_t>& lengths,
                       const Array<float>& dense) const {
    const WireUsers users = as_users(ids, lengths, dense);
    Array<float> sparse({users.ids.rows, engine_->widths().retrieval_sparse});
    const Matrix<float> out = as_output(sparse);
    const py::gil_scoped_release release;
    check(engine_->schema(), users);
    engine_->look_up(Rows(users).batch(), out, {});
    return sparse;
  }

  Inputs look_up_candidates(const Array<int64_t>& ids, const Array<int32_t>& lengths,
                            const Array<float>& dense, const Array<int64_t>& candidates,
                            const Array<float>& candidate_scores) const {
    const WireUsers users = as_users(ids, lengths, dense);
    const CandidateBatch items = as_candidates(candidates, candidate_scores);
    const GraphWidths widths = engine_->widths();
    const int64_t batch = users.ids.rows;
    const int64_t slots = graph_slots(items.item_ids.cols);
    Array<float> sparse({batch, widths.ranking_sparse});
    Array<float> rows({batch, slots, widths.item});
    Array<float> scores({batch, slots});
    const RankerInputs out = {
        as_output(sparse), {rows.mutable_data(), batch * slots, widths.item}, as_output(scores)};
    {
      const py::gil_scoped_release release;
      check(engine_->schema(), users, items);
      engine_->look_up(Rows(users).batch(), items, out, {});
    }
    return py::make_tuple(std::move(sparse), std::move(rows), std::move(scores));
  }

  Ranked search(const Array<int64_t>& ids, const Array<int32_t>& lengths, const Array<float>& dense,
                const Array<float>& vectors, int64_t k) const {
    const WireUsers users = as_users(ids, lengths, dense);
    const auto given = as_matrix("[engine] user", vectors);
    return answer(users.ids.rows, k, [&](Recommendations out) {
      check(engine_->schema(), users, given, engine_->widths().user);
      engine_->search(Rows(users).batch(), given, out, {});
    });
  }

  Ranked order(const Array<int64_t>& ids, const Array<int32_t>& lengths, const Array<float>& dense,
               const Array<int64_t>& candidates, const Array<float>& candidate_scores,
               const Array<float>& graph_scores, int64_t k) const {
    const WireUsers users = as_users(ids, lengths, dense);
    const CandidateBatch items = as_candidates(candidates, candidate_scores);
    const auto given = as_matrix("[engine] graph_scores", graph_scores);
    return answer(users.ids.rows, k, [&](Recommendations out) {
      check(engine_->schema(), users, items, given);
      engine_->order(Rows(users).batch(), items, given, out, {});
    });
  }

 private:
  std::unique_ptr<Engine> engine_;
};

py::bytes sha256_of(const py::bytes& data, bool portable) {
  const std::string_view bytes = data;
  const Span<const uint8_t> span(reinterpret_cast<const uint8_t*>(bytes.data()),
                                 static_cast<int64_t>(bytes.size()));
  const Sha256Digest digest = portable ? sha256_portable(span) : sha256(span);
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<PyEngine>(m, "Engine")
      .def(py::init<const std::string&, std::optional<int>, std::optional<bool>>(),
           py::arg("directory"), py::arg("threads") = py::none(), py::arg("resident") = py::none())
      .def_property_readonly("memory", &PyEngine::memory)
      .def_property_readonly("schema", &PyEngine::schema)
      .def_property_readonly("has_retrieval", &PyEngine::has_retrieval)
      .def_property_readonly("has_ranking", &PyEngine::has_ranking)
      .def("retrieve", &PyEngine::retrieve, py::arg("ids").noconvert(),
           py::arg("lengths").noconvert(), py::arg("dense").noconvert(), py::arg("k"))
      .def("rank", &PyEngine::rank, py::arg("ids").noconvert(), py::arg("lengths").noconvert(),
           py::arg("dense").noconvert(), py::arg("candidates").noconvert(),
           py::arg("candidate_scores").noconvert(), py::arg("k"))
      .def("recommend", &PyEngine::recommend, py::arg("ids").noconvert(),
           py::arg("lengths").noconvert(), py::arg("dense").noconvert(), py::arg("k"),
           py::arg("num_candidates"))
      .def("look_up", &PyEngine::look_up, py::arg("ids").noconvert(),
           py::arg("lengths").noconvert(), py::arg("dense").noconvert())
      .def("look_up_candidates", &PyEngine::look_up_candidates, py::arg("ids").noconvert(),
           py::arg("lengths").noconvert(), py::arg("dense").noconvert(),
           py::arg("candidates").noconvert(), py::arg("candidate_scores").noconvert())
      .def("search", &PyEngine::search, py::arg("ids").noconvert(), py::arg("lengths").noconvert(),
           py::arg("dense").noconvert(), py::arg("user").noconvert(), py::arg("k"))
      .def("order", &PyEngine::order, py::arg("ids").noconvert(), py::arg("lengths").noconvert(),
           py::arg("dense").noconvert(), py::arg("candidates").noconvert(),
           py::arg("candidate_scores").noconvert(), py::arg("graph_scores").noconvert(),
           py::arg("k"));
  m.def("sha256", &sha256_of, py::arg("data"), py::arg("portable") = false,
        "SHA-256 of bytes as the loader computes it.");
}

}  // namespace recengine
