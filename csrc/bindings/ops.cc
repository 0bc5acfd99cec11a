#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bound.h"
#include "bindings/shared_pool.h"
#include "cpu/huge_pages.h"
#include "recengine/context.h"
#include "recengine/error.h"
#include "recengine/item_index.h"
#include "recengine/live_item_index.h"
#include "recengine/ops/cosine_topk.h"
#include "recengine/ops/embedding_bag.h"
#include "recengine/ops/order.h"
#include "recengine/table.h"
#include "recengine/vocabulary.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace recengine {
namespace {

// None means every core that the process may use, and the default instruction set.
Context make_context(std::optional<int> threads, const std::optional<std::string>& isa) {
  Context context;
  context.isa = isa ? isa_from_name(*isa) : default_isa();
  if (!isa_supported(context.isa)) {
    throw DeviceError("[isa] this CPU lacks " + isa_name(context.isa));
  }
  static const int cores = usable_cores();  // reads files, too slow for every call
  context.pool = shared_pool(threads ? *threads : cores);
  return context;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (Isa isa : isas()) {
    if (isa_supported(isa)) names.push_back(isa_name(isa));
  }
  return names;
}

RowType row_type_of(const py::array& data) {
  const char kind = data.dtype().kind();
  const py::ssize_t bytes = data.itemsize();
  if (kind == 'f' && bytes == 4) return RowType::kFloat32;
  if (kind == 'f' && bytes == 2) return RowType::kFloat16;
  if (kind == 'u' && bytes == 2) return RowType::kBfloat16;
  if (kind == 'i' && bytes == 1) return RowType::kInt8;
  throw InputError(
      "[embedding_table] data: expected float32, float16, uint16 (bfloat16) or int8, found " +
      std::string(py::str(data.dtype())));
}

void expect_rows(const py::array& data) {
  expect_rank("[embedding_table] data", data, 2);
  const bool plain = (data.flags() & py::array::c_style) != 0 &&
                     data.dtype().byteorder() != (PY_BIG_ENDIAN ? '<' : '>');
  if (!plain || data.shape(1) < 1 || data.shape(1) > INT32_MAX) {
    throw InputError("[embedding_table] data: expected native [rows, dim] in C order, dim >= 1");
  }
}

BoundTable make_table(std::string name, py::array data, std::optional<Array<float>> scales) {
  expect_rows(data);
  const RowType type = row_type_of(data);
  const int64_t rows = data.shape(0);
  const bool needs_scales = type == RowType::kInt8;
  if (needs_scales != scales.has_value()) {
    throw InputError(std::string("[embedding_table] scales: expected ") +
                     (needs_scales ? "one per int8 row, found none" : "none, found some"));
  }
  if (scales && as_span("[embedding_table] scales", *scales).size != rows) {
    throw InputError("[embedding_table] scales: expected " + std::to_string(rows) + ", found " +
                     std::to_string(scales->shape(0)));
  }
  BoundTable table;
  table.view = plain_table(std::move(name), data.data(), rows, static_cast<int32_t>(data.shape(1)),
                           type, scales ? scales->data() : nullptr);
  table.data = std::move(data);
  table.scales = std::move(scales);
  return table;
}

BoundTable make_fused_table(std::string name, Array<uint8_t> data, int64_t dim, bool int4,
                            bool rowwise) {
  expect_rows(data);
  if (dim < 1 || dim > INT32_MAX) {
    throw InputError("[embedding_table] dim: expected at least 1, found " + std::to_string(dim));
  }
  BoundTable table;
  table.view = fused_table(std::move(name), data.data(), data.shape(0), static_cast<int32_t>(dim),
                           int4 ? RowType::kFusedInt4 : RowType::kFusedInt8,
                           rowwise ? FusedLayout::kRowwise : FusedLayout::kTbe, data.shape(1));
  table.data = std::move(data);
  return table;
}

std::string row_type_name(const BoundTable& table) {
  switch (table.view.row_type) {
    case RowType::kFloat32:
      return "fp32";
    case RowType::kFloat16:
      return "fp16";
    case RowType::kBfloat16:
      return "bf16";
    case RowType::kInt8:
    case RowType::kFusedInt8:
      return "int8";
    case RowType::kFusedInt4:
      return "int4";
  }
  return "unknown";
}

Array<float> call_embedding_bag(const std::vector<const BoundTable*>& tables,
                                const std::vector<std::string>& poolings,
                                const std::vector<int32_t>& max_lengths, const Array<int64_t>& rows,
                                const Array<int32_t>& lengths,
                                const std::optional<Array<float>>& weights,
                                std::optional<Array<float>> out, std::optional<int> threads,
                                const std::optional<std::string>& isa) {
  std::vector<const EmbeddingTable*> views;
  for (const BoundTable* table : tables) views.push_back(table == nullptr ? nullptr : &table->view);
  const std::vector<BagColumn> columns = make_columns(views, poolings, max_lengths);
  const int64_t width = columns_width(columns);
  BagInput input;
  input.rows = as_span("[embedding_bag] rows", rows);
  input.lengths = as_matrix("[embedding_bag] lengths", lengths);
  if (weights) {
    const Span<const float> values = as_span("[embedding_bag] weights", *weights);
    if (values.size != input.rows.size) {
      throw InputError("[embedding_bag] weights: expected " + std::to_string(input.rows.size) +
                       ", found " + std::to_string(values.size));
    }
    input.weights = values.data;
  }
  const Context context = make_context(threads, isa);
  if (!out) {
    out.emplace({input.lengths.rows, width});
  } else if (out->ndim() != 2 || out->shape(0) != input.lengths.rows || out->shape(1) != width) {
    throw InputError("[embedding_bag] out: expected float32 [" +
                     std::to_string(input.lengths.rows) + ", " + std::to_string(width) +
                     "], found " + std::string(py::str(out->attr("shape"))));
  }
  const Matrix<float> result = as_output(*out);
  py::gil_scoped_release release;
  embedding_bag(context, columns, input, result);
  return *std::move(out);
}

template <typename T>
Array<T> copied(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

using Certified = std::tuple<Array<int64_t>, Array<float>, Array<float>, Array<int64_t>>;

const ItemIndex& items_of(const BoundIndex& bound) { return bound.index; }
const LiveItemIndex& items_of(const LiveItemIndex& index) { return index; }

// Rows, scores, and per query: threshold and bound [batch, 2], survivors and items scored [batch,
// 2].
template <typename Index, typename... Searched>
Certified call_cosine_topk(const Index& index, const Array<float>& queries, int64_t k,
                           const std::optional<Array<int64_t>>& exclude_rows,
                           const std::optional<Array<int32_t>>& exclude_lengths,
                           const std::optional<Array<uint64_t>>& allow_bitmap,
                           std::optional<int> threads, const std::optional<std::string>& isa,
                           Searched*... searched) {
  if (k < 1) throw InputError("[cosine_topk] k: expected at least 1, found " + std::to_string(k));
  TopKQuery query;
  query.queries = as_matrix("[cosine_topk] queries", queries);
  if (exclude_rows) query.exclude_rows = as_span("[cosine_topk] exclude_rows", *exclude_rows);
  if (exclude_lengths) {
    query.exclude_lengths = as_span("[cosine_topk] exclude_lengths", *exclude_lengths);
  }
  if (allow_bitmap) query.allow_bitmap = as_span("[cosine_topk] allow", *allow_bitmap);
  const Context context = make_context(threads, isa);
  Array<int64_t> rows({query.queries.rows, k});
  Array<float> scores({query.queries.rows, k});
  const Matrix<int64_t> out_rows = as_output(rows);
  const Matrix<float> out_scores = as_output(scores);
  std::vector<TopKCertificate> certificates(static_cast<size_t>(query.queries.rows));
  {
    py::gil_scoped_release release;
    cosine_topk(context, items_of(index), query, out_rows, out_scores, certificates.data(),
                searched...);
  }
  Array<float> bounds({query.queries.rows, int64_t{2}});
  Array<int64_t> counts({query.queries.rows, int64_t{2}});
  for (int64_t q = 0; q < query.queries.rows; ++q) {
    const TopKCertificate& certificate = certificates[static_cast<size_t>(q)];
    bounds.mutable_at(q, 0) = certificate.threshold;
    bounds.mutable_at(q, 1) = certificate.bound;
    counts.mutable_at(q, 0) = certificate.survivors;
    counts.mutable_at(q, 1) = certificate.scored;
  }
  return {std::move(rows), std::move(scores), std::move(bounds), std::move(counts)};
}

// And a copy of the items that were searched: their rows, and their unit vectors [rows, dim].
std::tuple<Certified, Array<int64_t>, Array<float>> call_cosine_topk_and_items(
    const LiveItemIndex& index, const Array<float>& queries, int64_t k,
    const std::optional<Array<int64_t>>& exclude_rows,
    const std::optional<Array<int32_t>>& exclude_lengths,
    const std::optional<Array<uint64_t>>& allow_bitmap, std::optional<int> threads,
    const std::optional<std::string>& isa) {
  LiveItems items;
  Certified found = call_cosine_topk(index, queries, k, exclude_rows, exclude_lengths, allow_bitmap,
                                     threads, isa, &items);
  const auto count = static_cast<int64_t>(items.rows.size());
  float* const units = items.unit_vectors.get();
  const py::capsule owner(items.unit_vectors.release(),
                          [](void* owned) { delete[] static_cast<float*>(owned); });
  return {std::move(found), copied(items.rows), Array<float>({count, index.dim()}, units, owner)};
}

std::pair<Array<int64_t>, Array<float>> call_order(const Array<int64_t>& candidate_ids,
                                                   const Array<float>& scores, int64_t k) {
  if (k < 1) throw InputError("[order] k: expected at least 1, found " + std::to_string(k));
  const Matrix<const int64_t> ids = as_matrix("[order] candidate_ids", candidate_ids);
  const Matrix<const float> values = as_matrix("[order] scores", scores);
  Array<int64_t> best_ids({ids.rows, k});
  Array<float> best_scores({ids.rows, k});
  const Matrix<int64_t> out_ids = as_output(best_ids);
  const Matrix<float> out_scores = as_output(best_scores);
  {
    py::gil_scoped_release release;
    order(ids, values, out_ids, out_scores);
  }
  return {std::move(best_ids), std::move(best_scores)};
}

BoundIndex build_index(const Array<float>& vectors, std::optional<bool> split) {
  const Matrix<const float> matrix = as_matrix("[item_index] vectors", vectors);
  py::gil_scoped_release release;
  return {ItemIndex::build(matrix, shared_pool(usable_cores()), split), std::nullopt, std::nullopt};
}

// Codes, bounds, axes and scans, as StoredCodes has them.
using CodeArrays = std::tuple<Array<uint8_t>, Array<float>, Array<float>, Array<float>>;

std::vector<float> copy_floats(const char* name, const Array<float>& array) {
  const Span<const float> values = as_span(name, array);
  return {values.data, values.data + values.size};
}

StoredCodes as_codes(const CodeArrays& arrays) {
  const auto& [codes, bounds, axes, scans] = arrays;
  return {as_span("[item_index] codes", codes), copy_floats("[item_index] bounds", bounds),
          copy_floats("[item_index] axes", axes), copy_floats("[item_index] scans", scans)};
}

BoundIndex borrow_index(const ItemVectors& unit_vectors, py::array owner,
                        std::optional<CodeArrays> arrays, std::optional<bool> split) {
  BoundIndex bound{{}, std::move(owner), std::nullopt};
  if (arrays) {
    const StoredCodes codes = as_codes(*arrays);
    bound.codes = std::get<0>(*arrays);
    const py::gil_scoped_release release;
    bound.index = ItemIndex::with_codes(unit_vectors, codes);
  } else {
    ThreadPool* pool = shared_pool(usable_cores());
    const py::gil_scoped_release release;
    bound.index = ItemIndex::from_unit_vectors(unit_vectors, pool, split);
  }
  return bound;
}

BoundIndex borrow_floats(const Array<float>& unit_vectors, std::optional<CodeArrays> codes,
                         std::optional<bool> split) {
  return borrow_index({as_matrix("[item_index] unit_vectors", unit_vectors), {}}, unit_vectors,
                      std::move(codes), split);
}

BoundIndex borrow_halves(const Array<uint16_t>& unit_vectors, std::optional<CodeArrays> codes,
                         std::optional<bool> split) {
  return borrow_index({{}, as_matrix("[item_index] unit_vectors", unit_vectors)}, unit_vectors,
                      std::move(codes), split);
}

// The codes are a view.
std::optional<CodeArrays> stored_codes(const py::object& self) {
  const auto stored = self.cast<const BoundIndex&>().index.stored_codes();
  if (!stored) return std::nullopt;
  Array<uint8_t> codes({stored->codes.size}, stored->codes.data, self);
  codes.attr("setflags")("write"_a = false);
  return CodeArrays(std::move(codes), copied(stored->bounds), copied(stored->axes),
                    copied(stored->scans));
}

std::unique_ptr<LiveItemIndex> build_live_index(const Array<float>& vectors) {
  const Matrix<const float> matrix = as_matrix("[item_index] vectors", vectors);
  const py::gil_scoped_release release;
  return std::make_unique<LiveItemIndex>(matrix, shared_pool(usable_cores()));
}

int64_t append_items(LiveItemIndex& self, const Array<float>& vectors) {
  const Matrix<const float> matrix = as_matrix("[live_item_index] vectors", vectors);
  const py::gil_scoped_release release;
  return self.append(matrix);
}

void replace_items(LiveItemIndex& self, const Array<int64_t>& rows, const Array<float>& vectors) {
  const Span<const int64_t> span = as_span("[live_item_index] rows", rows);
  const Matrix<const float> matrix = as_matrix("[live_item_index] vectors", vectors);
  const py::gil_scoped_release release;
  self.replace(span, matrix);
}

void remove_items(LiveItemIndex& self, const Array<int64_t>& rows) {
  const Span<const int64_t> span = as_span("[live_item_index] rows", rows);
  const py::gil_scoped_release release;
  self.remove(span);
}

template <typename T>
py::array read_only(Matrix<const T> matrix, const py::object& owner) {
  Array<T> view({matrix.rows, matrix.cols}, matrix.data, owner);
  view.attr("setflags")("write"_a = false);
  return view;
}

// fp32, or uint16 for the bits of fp16.
py::array unit_vectors(const py::object& self) {
  const ItemVectors& units = self.cast<const BoundIndex&>().index.unit_vectors();
  return units.is_half() ? read_only(units.halves, self) : read_only(units.floats, self);
}

BoundVocabulary hashed_vocabulary(Array<int64_t> slot_keys, Array<int32_t> slot_rows,
                                  int64_t count) {
  return {Vocabulary::hashed(as_span("[vocabulary] slot_keys", slot_keys),
                             as_span("[vocabulary] slot_rows", slot_rows), count),
          std::move(slot_keys), std::move(slot_rows)};
}

Array<int64_t> lookup(const BoundVocabulary& self, const Array<int64_t>& ids) {
  const Span<const int64_t> keys = as_span("[vocabulary] ids", ids);
  Array<int64_t> rows(keys.size);
  const Span<int64_t> out(rows.mutable_data(), keys.size);
  py::gil_scoped_release release;
  self.vocabulary.lookup(keys, out);
  return rows;
}

std::pair<Array<int64_t>, Array<int32_t>> call_build_slots(const Array<int64_t>& keys) {
  const Span<const int64_t> span = as_span("[build_slots] keys", keys);
  VocabularySlots slots;
  {
    py::gil_scoped_release release;
    slots = build_slots(span);
  }
  return {copied(slots.keys), copied(slots.rows)};
}

// A copy in huge pages where the system gives them; as bytes.
Array<uint8_t> copy_to_huge_pages(const py::array& source) {
  const int64_t bytes = source.nbytes();
  HugeArray<uint8_t> copy = allocate_huge<uint8_t>(bytes);
  {
    const py::gil_scoped_release release;
    std::memcpy(copy.get(), source.data(), static_cast<size_t>(bytes));
  }
  uint8_t* const memory = copy.get();
  const py::capsule owner(copy.release(), [](void* owned) { FreeMemory()(owned); });
  return Array<uint8_t>({bytes}, {1}, memory, owner);
}

int64_t count_huge_pages(const py::array& source) {
  return huge_page_bytes({{static_cast<const uint8_t*>(source.data()), source.nbytes()}});
}

void bind_classes(py::module_& module) {
  py::class_<BoundTable>(module, "EmbeddingTable")
      .def(py::init(&make_table), "name"_a, py::arg("data").noconvert(),
           py::arg("scales").noconvert())
      .def_static("fused", &make_fused_table, "name"_a, py::arg("data").noconvert(), "dim"_a,
                  "int4"_a, "rowwise"_a)
      .def_property_readonly("dim", [](const BoundTable& self) { return self.view.dim; })
      .def_property_readonly("name", [](const BoundTable& self) { return self.view.name; })
      .def_property_readonly("data", [](const BoundTable& self) { return self.data; })
      .def_property_readonly("scales", [](const BoundTable& self) { return self.scales; })
      .def_property_readonly("row_type", &row_type_name);
  py::class_<BoundIndex>(module, "ItemIndex")
      .def_static("build", &build_index, py::arg("vectors").noconvert(), "split"_a)
      .def_static("from_unit_vectors", &borrow_floats, py::arg("unit_vectors").noconvert(),
                  py::arg("codes").noconvert(), "split"_a)
      .def_static("from_unit_vectors", &borrow_halves, py::arg("unit_vectors").noconvert(),
                  py::arg("codes").noconvert(), "split"_a)
      .def("stored_codes", [](const py::object& self) { return stored_codes(self); })
      .def_property_readonly("rows", [](const BoundIndex& self) { return self.index.rows(); })
      .def_property_readonly("dim", [](const BoundIndex& self) { return self.index.dim(); })
      .def_property_readonly("partial_scans",
                             [](const BoundIndex& self) { return self.index.partial_scans(); })
      .def_property_readonly("split_codes",
                             [](const BoundIndex& self) { return self.index.split_codes(); })
      .def_property_readonly("unit_vectors", &unit_vectors);
  // Its destructor waits for a merge, during which other threads may want the GIL.
  py::class_<LiveItemIndex>(module, "LiveItemIndex", py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&build_live_index), py::arg("vectors").noconvert())
      .def("append", &append_items, py::arg("vectors").noconvert())
      .def("replace", &replace_items, py::arg("rows").noconvert(), py::arg("vectors").noconvert())
      .def("remove", &remove_items, py::arg("rows").noconvert())
      .def("merge", &LiveItemIndex::merge, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("rows", &LiveItemIndex::rows)
      .def_property_readonly("size", &LiveItemIndex::size)
      .def_property_readonly("dim", &LiveItemIndex::dim)
      .def_property_readonly("packed", &LiveItemIndex::packed)
      .def_property_readonly("pending", &LiveItemIndex::pending);
  py::class_<BoundVocabulary>(module, "Vocabulary")
      .def_static(
          "range",
          [](int64_t first, int64_t count) {
            return BoundVocabulary{Vocabulary::range(first, count), std::nullopt, std::nullopt};
          },
          "first"_a, "count"_a)
      .def_static("hashed", &hashed_vocabulary, py::arg("slot_keys").noconvert(),
                  py::arg("slot_rows").noconvert(), "count"_a)
      .def_property_readonly("size",
                             [](const BoundVocabulary& self) { return self.vocabulary.size(); })
      .def("lookup", &lookup, py::arg("ids").noconvert());
}

template <typename Call>
void bind_cosine_topk(py::module_& module, const char* name, Call* call) {
  module.def(name, call, "index"_a, py::arg("queries").noconvert(), "k"_a,
             py::arg("exclude_rows").noconvert(), py::arg("exclude_lengths").noconvert(),
             py::arg("allow_bitmap").noconvert(), "threads"_a, "isa"_a);
}

}  // namespace

void bind_ops(py::module_& module) {
  bind_classes(module);
  module.def("default_isa", [] { return isa_name(default_isa()); });
  module.def("supported_isas", &supported_isas);
  module.def("usable_cores", &usable_cores);
  module.def("embedding_bag", &call_embedding_bag, "tables"_a, "poolings"_a, "max_lengths"_a,
             py::arg("rows").noconvert(), py::arg("lengths").noconvert(),
             py::arg("weights").noconvert(), py::arg("out").noconvert(), "threads"_a, "isa"_a);
  bind_cosine_topk(module, "cosine_topk", &call_cosine_topk<BoundIndex>);
  bind_cosine_topk(module, "cosine_topk", &call_cosine_topk<LiveItemIndex>);
  bind_cosine_topk(module, "cosine_topk_and_items", &call_cosine_topk_and_items);
  module.def("order", &call_order, py::arg("candidate_ids").noconvert(),
             py::arg("scores").noconvert(), "k"_a);
  module.def("build_slots", &call_build_slots, py::arg("keys").noconvert());
  module.def("copy_to_huge_pages", &copy_to_huge_pages, "source"_a);
  module.def("huge_page_bytes", &count_huge_pages, "source"_a);
}

}  // namespace recengine
