#pragma once

// What the bindings of the CPU and of the GPU share.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "recengine/item_index.h"
#include "recengine/ops/embedding_bag.h"
#include "recengine/table.h"
#include "recengine/vocabulary.h"

namespace recengine {

// Views of NumPy arrays together with what keeps them alive.
struct BoundTable {
  EmbeddingTable view;
  pybind11::array data;
  std::optional<Array<float>> scales;
};

struct BoundIndex {
  ItemIndex index;
  std::optional<pybind11::array> borrowed;  // vectors
  std::optional<pybind11::array> codes;     // borrowed, too
};

struct BoundVocabulary {
  Vocabulary vocabulary;
  std::optional<Array<int64_t>> slot_keys;
  std::optional<Array<int32_t>> slot_rows;
};

// Columns side by side. Throws InputError when a pooling is unknown or lists disagree.
std::vector<BagColumn> make_columns(const std::vector<const EmbeddingTable*>& tables,
                                    const std::vector<std::string>& poolings,
                                    const std::vector<int32_t>& max_lengths);
int64_t columns_width(const std::vector<BagColumn>& columns);

}  // namespace recengine
