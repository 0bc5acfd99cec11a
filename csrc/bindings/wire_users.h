#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "bindings/arrays.h"
#include "recengine/engine.h"

namespace recengine {

inline WireUsers as_users(const Array<int64_t>& ids, const Array<int32_t>& lengths,
                          const Array<float>& dense) {
  return {as_matrix("[engine] ids", ids), as_matrix("[engine] lengths", lengths),
          as_matrix("[engine] dense", dense)};
}

// The view that the engine takes of users that passed check().
struct Rows {
  explicit Rows(const WireUsers& users) : wire(users) {
    for (int64_t b = 0; b < wire.ids.rows; ++b) ids.push_back(wire.ids.row(b));
  }
  UserBatch batch() const { return {ids, wire.lengths, wire.dense}; }

  WireUsers wire;
  std::vector<const int64_t*> ids;
};

pybind11::dict as_dict(const Schema& schema);
pybind11::dict as_dict(const EngineMemory& memory);

}  // namespace recengine
