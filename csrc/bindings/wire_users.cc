#include "bindings/wire_users.h"

#include <pybind11/stl.h>

namespace recengine {

namespace py = pybind11;

py::dict as_dict(const Schema& schema) {
  py::list features;
  for (const Schema::Feature& feature : schema.features) {
    features.append(py::dict(py::arg("name") = feature.name,
                             py::arg("max_length") = feature.max_length,
                             py::arg("hashed") = feature.hashed));
  }
  return py::dict(py::arg("name") = schema.name, py::arg("features") = features,
                  py::arg("dense_features") = schema.dense_features,
                  py::arg("dense_defaults") = schema.dense_defaults,
                  py::arg("num_items") = schema.num_items,
                  py::arg("num_candidates") = schema.num_candidates,
                  py::arg("max_candidates") = schema.max_candidates, py::arg("k") = schema.k,
                  py::arg("hashed_items") = schema.hashed_items);
}

py::dict as_dict(const EngineMemory& memory) {
  return py::dict(py::arg("mapped") = memory.mapped, py::arg("resident") = memory.resident,
                  py::arg("huge") = memory.huge, py::arg("device_tables") = memory.device_tables,
                  py::arg("device_shared") = memory.device_shared);
}

}  // namespace recengine
