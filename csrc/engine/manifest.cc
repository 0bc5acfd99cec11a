#include "engine/manifest.h"

#include <set>

#include "engine/json.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kFormatVersion = 1;
constexpr int64_t kDefaultChunkBytes = 64 << 20;
constexpr int64_t kMaxInt32 = INT32_MAX;

int64_t int_or(const JsonValue& value, const char* key, int64_t minimum, int64_t fallback) {
  const auto found = value.find(key);
  return found ? found->as_int(minimum) : fallback;
}

int32_t positive_int32(const JsonValue& value) {
  const int64_t number = value.as_int(1);
  if (number > kMaxInt32) value.fail("at most " + std::to_string(kMaxInt32));
  return static_cast<int32_t>(number);
}

TensorName read_tensor_name(const JsonValue& value) {
  value.require_only({"file", "tensor"});
  return {value.at("file").as_string(), value.at("tensor").as_string()};
}

std::optional<TensorName> find_tensor_name(const JsonValue& value, const char* key) {
  const auto found = value.find(key);
  return found ? std::optional(read_tensor_name(*found)) : std::nullopt;
}

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

FileEntry read_file_entry(const JsonValue& value) {
  value.require_only({"bytes", "chunk_bytes", "sha256"});
  FileEntry entry;
  entry.bytes = value.at("bytes").as_int(0);
  entry.chunk_bytes = int_or(value, "chunk_bytes", 1, kDefaultChunkBytes);
  for (const JsonValue& chunk : value.at("sha256").elements()) {
    entry.sha256.push_back(chunk.as_string());
    if (!is_sha256(entry.sha256.back())) chunk.fail("64 lower-case hexadecimal digits");
  }
  const int64_t chunks = entry.bytes == 0 ? 1 : (entry.bytes - 1) / entry.chunk_bytes + 1;
  if (static_cast<int64_t>(entry.sha256.size()) != chunks) {
    value.at("sha256").fail_plainly("expected " + std::to_string(chunks) + " chunks, found " +
                                    std::to_string(entry.sha256.size()));
  }
  return entry;
}

VocabularySpec read_vocabulary(const JsonValue& value) {
  value.require_only({"kind", "count", "first", "keys", "rows"});
  VocabularySpec spec;
  spec.hashed = value.at("kind").as_one_of({"range", "hashed"}) == 1;
  spec.count = value.at("count").as_int(0);
  spec.first = int_or(value, "first", INT64_MIN, 0);
  spec.keys = find_tensor_name(value, "keys");
  spec.rows = find_tensor_name(value, "rows");
  if (spec.keys.has_value() != spec.hashed || spec.rows.has_value() != spec.hashed) {
    value.fail_plainly("a hashed vocabulary has keys and rows, a range has neither");
  }
  return spec;
}

FeatureSpec read_feature(const JsonValue& value) {
  value.require_only({"name", "vocabulary", "max_length", "hashed"});
  FeatureSpec spec;
  spec.name = value.at("name").as_string();
  spec.vocabulary = value.at("vocabulary").as_string();
  spec.max_length = positive_int32(value.at("max_length"));
  const auto hashed = value.find("hashed");
  spec.hashed = hashed && hashed->as_bool();
  return spec;
}

TableSpec read_table(const JsonValue& value) {
  value.require_only({"rows", "dim", "row_type", "data", "scales"});
  TableSpec spec;
  spec.rows = value.at("rows").as_int(1);
  spec.dim = positive_int32(value.at("dim"));
  constexpr RowType kRowTypes[] = {RowType::kFloat32, RowType::kFloat16, RowType::kBfloat16,
                                   RowType::kInt8, RowType::kFusedInt4};
  spec.row_type =
      kRowTypes[value.at("row_type").as_one_of({"fp32", "fp16", "bf16", "int8", "int4"})];
  spec.data = read_tensor_name(value.at("data"));
  spec.scales = find_tensor_name(value, "scales");
  if (spec.scales.has_value() != (spec.row_type == RowType::kInt8)) {
    value.fail_plainly("int8 rows have scales, others have none");
  }
  return spec;
}

BagSpec read_bag(const JsonValue& value) {
  value.require_only({"feature", "table", "pooling", "max_length"});
  BagSpec spec;
  spec.feature = value.at("feature").as_string();
  spec.table = value.at("table").as_string();
  const bool mean = value.at("pooling").as_one_of({"sum", "mean"}) == 1;
  spec.pooling = mean ? Pooling::kMean : Pooling::kSum;
  spec.max_length = positive_int32(value.at("max_length"));
  return spec;
}

std::vector<BagSpec> read_bags(const JsonValue& value) {
  std::vector<BagSpec> bags;
  for (const JsonValue& bag : value.elements()) bags.push_back(read_bag(bag));
  if (bags.empty()) value.fail_plainly("expected at least one bag");
  return bags;
}

std::vector<GraphTensor> read_graph_tensors(const JsonValue& value) {
  std::vector<GraphTensor> tensors;
  for (const JsonValue& element : value.elements()) {
    element.require_only({"name", "dims"});
    GraphTensor tensor;
    tensor.name = element.at("name").as_string();
    for (const JsonValue& dim : element.at("dims").elements()) {
      tensor.dims.push_back(dim.is_string() ? kDynamicDim : dim.as_int(0));
    }
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

GraphSpec read_graph(const JsonValue& value) {
  value.require_only({"file", "weights", "format", "precision", "inputs", "outputs"});
  GraphSpec spec;
  spec.file = value.at("file").as_string();
  if (const auto weights = value.find("weights")) spec.weights = weights->as_string();
  spec.onnx = value.at("format").as_one_of({"onnx", "openvino"}) == 0;
  if (const auto precision = value.find("precision")) {
    const bool bf16 = precision->as_one_of({"fp32", "bf16"}) == 1;
    spec.precision = bf16 ? Precision::kBFloat16 : Precision::kFloat32;
  }
  spec.inputs = read_graph_tensors(value.at("inputs"));
  spec.outputs = read_graph_tensors(value.at("outputs"));
  return spec;
}

RetrievalSpec read_retrieval(const JsonValue& value) {
  value.require_only(
      {"family", "bags", "graph", "index", "fallback", "num_candidates", "max_candidates"});
  RetrievalSpec spec;
  value.at("family").as_string();
  spec.bags = read_bags(value.at("bags"));
  spec.graph = value.at("graph").as_string();
  const JsonValue index = value.at("index");
  index.require_only({"rows", "dim", "vectors", "keys", "codes"});
  spec.index.rows = index.at("rows").as_int(1);
  spec.index.dim = positive_int32(index.at("dim"));
  spec.index.vectors = read_tensor_name(index.at("vectors"));
  spec.index.keys = read_tensor_name(index.at("keys"));
  if (const auto codes = index.find("codes")) spec.index.codes = codes->as_string();
  const JsonValue fallback = value.at("fallback");
  fallback.require_only({"rows", "scores"});
  spec.fallback.rows = read_tensor_name(fallback.at("rows"));
  spec.fallback.scores = read_tensor_name(fallback.at("scores"));
  spec.num_candidates = positive_int32(value.at("num_candidates"));
  spec.max_candidates = positive_int32(value.at("max_candidates"));
  if (spec.num_candidates > spec.max_candidates) {
    value.at("num_candidates").fail("at most max_candidates");
  }
  return spec;
}

RankingSpec read_ranking(const JsonValue& value) {
  value.require_only({"family", "bags", "item_table", "graph", "k", "usual_candidates"});
  RankingSpec spec;
  value.at("family").as_string();
  spec.bags = read_bags(value.at("bags"));
  spec.item_table = value.at("item_table").as_string();
  spec.graph = value.at("graph").as_string();
  spec.k = positive_int32(value.at("k"));
  if (const auto usual = value.find("usual_candidates")) {
    spec.usual_candidates = positive_int32(*usual);
  }
  return spec;
}

template <typename T>
std::map<std::string, T> read_map(const JsonValue& value, T (*read)(const JsonValue&)) {
  std::map<std::string, T> map;
  for (const auto& [name, member] : value.members()) map.emplace(name, read(member));
  return map;
}

// Names that one part of the manifest uses must stand in another.
class Resolver {
 public:
  Resolver(const std::string& path, const Manifest& manifest) : path_(path), manifest_(manifest) {}

  void run() const {
    std::set<std::string> features;
    for (const FeatureSpec& feature : manifest_.features) {
      if (!features.insert(feature.name).second) {
        throw BundleError(path_ + ": features: \"" + feature.name + "\" stands twice");
      }
      known("vocabulary", manifest_.vocabularies, feature.vocabulary,
            "feature \"" + feature.name + "\"");
    }
    known("vocabulary", manifest_.vocabularies, manifest_.item_vocabulary, "item_vocabulary");
    if (manifest_.retrieval)
      model("retrieval", manifest_.retrieval->bags, manifest_.retrieval->graph, features);
    if (manifest_.ranking) {
      model("ranking", manifest_.ranking->bags, manifest_.ranking->graph, features);
      if (manifest_.holds(StageKind::kLookup)) {
        known("table", manifest_.tables, manifest_.ranking->item_table, "ranking");
      }
    }
    files();
  }

 private:
  template <typename Names>
  void known(const char* kind, const Names& names, const std::string& name,
             const std::string& owner) const {
    if (names.count(name) == 0) {
      throw BundleError(path_ + ": " + owner + " names " + kind + " \"" + name +
                        "\", which the manifest does not have");
    }
  }

  // A single stage leaves to others what it does not read.
  void model(const char* owner, const std::vector<BagSpec>& bags, const std::string& graph,
             const std::set<std::string>& features) const {
    if (!manifest_.stage) known("graph", manifest_.graphs, graph, owner);
    for (const BagSpec& bag : bags) {
      known("feature", features, bag.feature, owner);
      if (manifest_.holds(StageKind::kLookup)) known("table", manifest_.tables, bag.table, owner);
    }
  }

  void files() const {
    for (const auto& [name, spec] : manifest_.vocabularies) {
      if (!spec.hashed) continue;
      file(spec.keys->file);
      file(spec.rows->file);
    }
    for (const auto& [name, spec] : manifest_.tables) {
      file(spec.data.file);
      if (spec.scales) file(spec.scales->file);
    }
    for (const auto& [name, spec] : manifest_.graphs) {
      file(spec.file);
      if (spec.weights) file(*spec.weights);
    }
    if (manifest_.retrieval && manifest_.holds(StageKind::kTopK)) {
      file(manifest_.retrieval->index.vectors.file);
      file(manifest_.retrieval->index.keys.file);
      if (manifest_.retrieval->index.codes) file(*manifest_.retrieval->index.codes);
      file(manifest_.retrieval->fallback.rows.file);
      file(manifest_.retrieval->fallback.scores.file);
    }
  }

  void file(const std::string& name) const { known("file", manifest_.files, name, "the manifest"); }

  const std::string& path_;
  const Manifest& manifest_;
};

// A stage is of one model; top-K is retrieval's, ordering ranking's.
void require_model_of_stage(const Manifest& manifest, const JsonValue& document) {
  if (!manifest.retrieval && !manifest.ranking) {
    document.fail_plainly("expected a retrieval or a ranking stage");
  }
  if (!manifest.stage) return;
  const bool fits = manifest.retrieval ? !manifest.ranking && *manifest.stage != StageKind::kOrder
                                       : *manifest.stage != StageKind::kTopK;
  if (!fits) {
    document.at("stage").fail_plainly(
        "expected topk with retrieval alone, order with ranking alone, lookup with one of them");
  }
}

void require_format_version(const JsonValue& document, const std::string& path) {
  const JsonValue version = document.at("format_version");
  if (version.as_int(INT64_MIN) != kFormatVersion) {
    throw BundleError(path + ": format_version is " + std::to_string(version.as_int(INT64_MIN)) +
                      ", this recengine reads " + std::to_string(kFormatVersion));
  }
}

}  // namespace

Manifest read_manifest(const MappedFile& file) {
  const nlohmann::json json = parse_json(file.path(), file.bytes());
  const JsonValue document(json, file.path());
  require_format_version(document, file.path());
  document.require_only({"format_version", "name", "target", "stage", "features", "dense_features",
                         "item_vocabulary", "vocabularies", "tables", "graphs", "retrieval",
                         "ranking", "reference", "fidelity", "provenance", "files"});
  Manifest manifest;
  manifest.name = document.at("name").as_string();
  if (const auto target = document.find("target")) {
    target->as_one_of({"cpu", "onnxruntime", "gpu"});
  }
  if (const auto stage = document.find("stage")) {
    manifest.stage = static_cast<StageKind>(stage->as_one_of({"lookup", "topk", "order"}));
  }
  for (const JsonValue& feature : document.at("features").elements()) {
    manifest.features.push_back(read_feature(feature));
  }
  if (const auto dense = document.find("dense_features")) {
    for (const JsonValue& name : dense->elements()) {
      manifest.dense_features.push_back(name.as_string());
    }
  }
  manifest.item_vocabulary = document.at("item_vocabulary").as_string();
  manifest.vocabularies = read_map(document.at("vocabularies"), read_vocabulary);
  manifest.tables = read_map(document.at("tables"), read_table);
  manifest.graphs = read_map(document.at("graphs"), read_graph);
  if (const auto model = document.find("retrieval")) manifest.retrieval = read_retrieval(*model);
  if (const auto model = document.find("ranking")) manifest.ranking = read_ranking(*model);
  if (const auto means = document.at("provenance").find("dense_means")) {
    for (const auto& [name, mean] : means->members()) {
      const auto& names = manifest.dense_features;
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        mean.fail_plainly("no dense feature has this name");
      }
      manifest.dense_means[name] = mean.as_number();
    }
  }
  manifest.files = read_map(document.at("files"), read_file_entry);
  require_model_of_stage(manifest, document);
  Resolver(file.path(), manifest).run();
  return manifest;
}

}  // namespace recengine
