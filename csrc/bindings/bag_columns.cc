#include "bindings/bound.h"

namespace recengine {
namespace {

Pooling pooling_from_name(const std::string& name) {
  if (name == "sum") return Pooling::kSum;
  if (name == "mean") return Pooling::kMean;
  if (name == "none") return Pooling::kNone;
  throw InputError("[embedding_bag] pooling: expected sum, mean or none; found \"" + name + "\"");
}

int64_t width_of(const BagColumn& column) {
  return column.table->dim *
         (column.pooling == Pooling::kNone ? int64_t{column.max_length} : int64_t{1});
}

}  // namespace

std::vector<BagColumn> make_columns(const std::vector<const EmbeddingTable*>& tables,
                                    const std::vector<std::string>& poolings,
                                    const std::vector<int32_t>& max_lengths) {
  if (poolings.size() != tables.size() || max_lengths.size() != tables.size()) {
    throw InputError("[embedding_bag] pooling: expected one per table");
  }
  std::vector<BagColumn> columns(tables.size());
  int64_t width = 0;
  for (size_t c = 0; c < tables.size(); ++c) {
    if (tables[c] == nullptr) throw InputError("[embedding_bag] tables: found None");
    if (max_lengths[c] < 0) throw InputError("[embedding_bag] max_length: expected at least 0");
    columns[c] = {tables[c], pooling_from_name(poolings[c]), max_lengths[c], width};
    width += width_of(columns[c]);
  }
  return columns;
}

int64_t columns_width(const std::vector<BagColumn>& columns) {
  return columns.empty() ? 0 : columns.back().offset + width_of(columns.back());
}

}  // namespace recengine
