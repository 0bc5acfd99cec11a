#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/mapped_file.h"
#include "recengine/ops/embedding_bag.h"
#include "recengine/table.h"

namespace recengine {

// manifest.json as recengine/bundle.py writes it; the structs carry its names.

struct FileEntry {
  int64_t bytes = 0;
  int64_t chunk_bytes = 0;
  std::vector<std::string> sha256;  // one a chunk
};

struct TensorName {
  std::string file;
  std::string tensor;
};

struct VocabularySpec {
  bool hashed = false;
  int64_t count = 0;
  int64_t first = 0;               // range only
  std::optional<TensorName> keys;  // hashed only
  std::optional<TensorName> rows;  // hashed only
};

struct FeatureSpec {
  std::string name;
  std::string vocabulary;
  int64_t max_length = 0;
  bool hashed = false;
};

struct TableSpec {
  int64_t rows = 0;
  int32_t dim = 0;
  RowType row_type = RowType::kFloat32;
  TensorName data;
  std::optional<TensorName> scales;  // int8 only
};

struct BagSpec {
  std::string feature;
  std::string table;
  Pooling pooling = Pooling::kSum;
  int64_t max_length = 0;
};

constexpr int64_t kDynamicDim = -1;

struct GraphTensor {
  std::string name;
  std::vector<int64_t> dims;  // kDynamicDim for a named axis
};

enum class Precision : uint8_t { kFloat32, kBFloat16 };

struct GraphSpec {
  std::string file;
  std::optional<std::string> weights;
  bool onnx = false;  // else OpenVINO IR
  Precision precision = Precision::kFloat32;
  std::vector<GraphTensor> inputs;
  std::vector<GraphTensor> outputs;
};

struct IndexSpec {
  int64_t rows = 0;
  int64_t dim = 0;
  TensorName vectors;
  TensorName keys;
  std::optional<std::string> codes;  // the file that has them
};

struct FallbackSpec {
  TensorName rows;
  TensorName scores;
};

struct RetrievalSpec {
  std::vector<BagSpec> bags;
  std::string graph;
  IndexSpec index;
  FallbackSpec fallback;
  int64_t num_candidates = 0;
  int64_t max_candidates = 0;
};

struct RankingSpec {
  std::vector<BagSpec> bags;
  std::string item_table;
  std::string graph;
  int64_t k = 0;
  int64_t usual_candidates = 0;  // 0: not said
};

// The one stage that a version directory of a split repository serves.
enum class StageKind : uint8_t { kLookup, kTopK, kOrder };

struct Manifest {
  std::string name;
  std::optional<StageKind> stage;  // none: all of them, graphs included
  std::vector<FeatureSpec> features;
  std::vector<std::string> dense_features;
  std::map<std::string, double> dense_means;  // of the users trained on; of some dense features
  std::string item_vocabulary;
  std::map<std::string, VocabularySpec> vocabularies;
  std::map<std::string, TableSpec> tables;
  std::map<std::string, GraphSpec> graphs;
  std::optional<RetrievalSpec> retrieval;
  std::optional<RankingSpec> ranking;
  std::map<std::string, FileEntry> files;

  bool holds(StageKind kind) const { return !stage || *stage == kind; }
};

// Throws BundleError with the JSON path of what is missing, of a wrong type, unknown or does not
// resolve; an unknown format version is refused before anything else is looked at. What only
// people and compilers read (provenance, fidelity) is not looked into.
Manifest read_manifest(const MappedFile& file);

}  // namespace recengine
