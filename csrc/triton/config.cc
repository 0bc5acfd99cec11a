#include "triton/config.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>

#include "triton/status.h"

namespace recengine::triton {
namespace {

using nlohmann::json;

constexpr int64_t kAnyDim = -1;
constexpr int64_t kMostThreads = 1024;

[[noreturn]] void refuse(const ModelConfig& config, const std::string& message) {
  throw StatusError(TRITONSERVER_ERROR_INVALID_ARG,
                    "[" + config.name + "] config.pbtxt: " + message);
}

int64_t parse_int(const std::string& text, int64_t minimum, const std::string& what) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < minimum) {
    throw StatusError(
        TRITONSERVER_ERROR_INVALID_ARG,
        what + ": expected an integer >= " + std::to_string(minimum) + ", found '" + text + "'");
  }
  return value;
}

// protobuf's JSON writes an int64 as text, Triton turns some of them back into numbers.
int64_t dim_of(const json& dim) {
  return dim.is_string() ? parse_int(dim.get<std::string>(), kAnyDim, "dims") : dim.get<int64_t>();
}

std::vector<ModelConfig::Tensor> read_tensors(const json& config, const char* key) {
  std::vector<ModelConfig::Tensor> tensors;
  for (const json& item : config.value(key, json::array())) {
    ModelConfig::Tensor tensor{item.at("name"), item.at("data_type"), {}};
    for (const json& dim : item.at("dims")) tensor.dims.push_back(dim_of(dim));
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

void read_parameter(const ModelConfig& config, const json& parameters, const std::string& key,
                    int64_t& value) {
  if (!parameters.contains(key)) return;
  const std::string text = parameters.at(key).value("string_value", std::string());
  value = parse_int(text, 1, "[" + config.name + "] config.pbtxt: parameter " + key);
}

void read_schema(const ModelConfig& config, const json& parameters, int64_t& max_candidates) {
  if (!parameters.contains("recengine.schema")) return;
  const std::string text = parameters.at("recengine.schema").value("string_value", std::string());
  const json schema = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!schema.is_object() || !schema.contains("max_candidates") ||
      !schema.at("max_candidates").is_number_integer() || schema.at("max_candidates") < 1) {
    refuse(config, "parameter recengine.schema: expected a JSON object with max_candidates >= 1");
  }
  max_candidates = schema.at("max_candidates");
}

int64_t count_warmups(const json& config) {
  int64_t count = 0;
  for (const json& sample : config.value("model_warmup", json::array())) {
    const auto repeats = std::max(sample.value("count", int64_t{1}), int64_t{1});
    count += sample.value("batch_size", int64_t{0}) * repeats;
  }
  return count;
}

const ModelConfig::Tensor* find(const std::vector<ModelConfig::Tensor>& tensors,
                                const std::string& name) {
  for (const ModelConfig::Tensor& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

struct Expected {
  const char* name;
  const char* data_type;
  std::vector<int64_t> dims;  // kAnyDim where a request decides
  bool optional = false;
};

std::string dims_text(const std::vector<int64_t>& dims) {
  std::string text;
  for (const int64_t dim : dims) text += (text.empty() ? "" : ", ") + std::to_string(dim);
  return text;
}

void check_tensors(const ModelConfig& config, const char* side,
                   const std::vector<ModelConfig::Tensor>& found,
                   const std::vector<Expected>& expected) {
  for (const Expected& want : expected) {
    const std::string what = std::string(side) + " " + want.name;
    const ModelConfig::Tensor* have = find(found, want.name);
    if (have == nullptr && want.optional) continue;
    if (have == nullptr) refuse(config, what + " is missing");
    if (have->data_type != want.data_type) {
      refuse(config, what + ": expected " + want.data_type + ", found " + have->data_type);
    }
    if (have->dims.size() != want.dims.size()) {
      refuse(config, what + ": expected " + std::to_string(want.dims.size()) +
                         (want.dims.size() == 1 ? " dim" : " dims") + ", found " +
                         std::to_string(have->dims.size()));
    }
    for (size_t d = 0; d < want.dims.size(); ++d) {
      if (have->dims[d] != kAnyDim && have->dims[d] != want.dims[d]) {
        refuse(config, what + ": expected dims " + dims_text(want.dims) + ", found " +
                           dims_text(have->dims));
      }
    }
  }
  for (const ModelConfig::Tensor& have : found) {
    bool known = false;
    for (const Expected& want : expected) known = known || have.name == want.name;
    if (!known) refuse(config, std::string(side) + " " + have.name + " is not one the model has");
  }
}

Expected deadline() { return {kDeadline, "TYPE_INT64", {1}, /*optional=*/true}; }

std::vector<Expected> expected_inputs(Stage stage, const Engine& engine) {
  const Schema& schema = engine.schema();
  const StageRequest& request = request_of(stage);
  std::vector<Expected> inputs = {
      {"ids", "TYPE_INT64", {kAnyDim}},
      {"lengths", "TYPE_INT32", {static_cast<int64_t>(schema.features.size()) + 1}}};
  if (!schema.dense_features.empty()) {
    inputs.push_back({"dense", "TYPE_FP32", {static_cast<int64_t>(schema.dense_features.size())}});
  }
  if (request.candidates) {
    inputs.push_back({"candidates", "TYPE_INT64", {kAnyDim}});
    inputs.push_back({"candidate_scores", "TYPE_FP32", {kAnyDim}});
  }
  if (request.graph_output != nullptr) {
    const int64_t width = stage == Stage::kTopK ? engine.widths().user : kAnyDim;
    inputs.push_back({request.graph_output, "TYPE_FP32", {width}});
  }
  if (stage != Stage::kRetrievalLookup && stage != Stage::kRetrieval) inputs.push_back(deadline());
  return inputs;
}

std::vector<Expected> expected_outputs(Stage stage, const GraphWidths& widths) {
  std::vector<Expected> outputs = {{"item_ids", "TYPE_INT64", {kAnyDim}},
                                   {"scores", "TYPE_FP32", {kAnyDim}}};
  if (stage == Stage::kRetrievalLookup) {
    outputs = {{"sparse", "TYPE_FP32", {widths.retrieval_sparse}}};
  }
  if (stage == Stage::kRankingLookup) {
    outputs = {{"sparse", "TYPE_FP32", {widths.ranking_sparse}},
               {"items", "TYPE_FP32", {kAnyDim, widths.item}},
               {"item_scores", "TYPE_FP32", {kAnyDim}}};
  }
  if (stage != Stage::kOrder && stage != Stage::kRanking) outputs.push_back(deadline());
  return outputs;
}

json parse(const std::string& text, const char* what) {
  json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) {
    throw StatusError(TRITONSERVER_ERROR_INVALID_ARG, std::string(what) + ": not a JSON object");
  }
  return document;
}

}  // namespace

ModelConfig parse_config(const std::string& text) {
  const json document = parse(text, "model configuration");
  ModelConfig config;
  config.name = document.value("name", std::string());
  config.inputs = read_tensors(document, "input");
  config.outputs = read_tensors(document, "output");
  config.max_batch_rows = document.value("max_batch_size", int64_t{0});
  if (config.max_batch_rows < 1) {
    refuse(config,
           "max_batch_size: expected at least 1, found " + std::to_string(config.max_batch_rows));
  }
  const json parameters = document.value("parameters", json::object());
  read_parameter(config, parameters, "recengine.max_queue_rows", config.max_queue_rows);
  read_parameter(config, parameters, "recengine.default_timeout_us", config.default_timeout_us);
  read_schema(config, parameters, config.max_candidates);
  config.num_warmups = count_warmups(document);
  const bool is_cached = document.value("response_cache", json::object()).value("enable", false);
  if (is_cached && find(config.outputs, kDeadline) != nullptr) {
    refuse(config, "response_cache: expected none, for the output deadline is each request's own");
  }
  config.reads_deadline = find(config.inputs, kDeadline) != nullptr;
  return config;
}

const StageRequest& request_of(Stage stage) {
  static constexpr StageRequest kRequests[] = {
      {false, nullptr, nullptr},           // retrieval lookup
      {false, "user", "num_candidates"},   // topk
      {false, nullptr, "num_candidates"},  // retrieval
      {true, nullptr, nullptr},            // ranking lookup
      {true, "graph_scores", "k"},         // order
      {true, nullptr, "k"},                // ranking
  };
  return kRequests[static_cast<size_t>(stage)];
}

Stage served_stage(const ModelConfig& config, const Engine& engine) {
  if (engine.has(Stage::kRetrieval) && engine.has(Stage::kRanking)) {
    const bool ranking = find(config.inputs, "candidates") != nullptr;
    return ranking ? Stage::kRanking : Stage::kRetrieval;
  }
  for (const Stage stage : {Stage::kRetrieval, Stage::kRanking, Stage::kRetrievalLookup,
                            Stage::kTopK, Stage::kRankingLookup}) {
    if (engine.has(stage)) return stage;
  }
  return Stage::kOrder;
}

void check_config(const ModelConfig& config, const Engine& engine) {
  check_tensors(config, "input", config.inputs, expected_inputs(config.stage, engine));
  check_tensors(config, "output", config.outputs, expected_outputs(config.stage, engine.widths()));
}

BackendConfig parse_backend_config(const std::string& text) {
  const json cmdline = parse(text, "backend configuration").value("cmdline", json::object());
  const auto number = [&cmdline](const char* key) -> int64_t {
    if (!cmdline.contains(key)) return 0;
    return parse_int(cmdline.at(key).get<std::string>(), 1,
                     std::string("--backend-config=recengine,") + key);
  };
  const std::string resident = cmdline.value("resident", std::string("codes"));
  const std::map<std::string, Residence> residences = {
      {"false", Residence::kNone}, {"codes", Residence::kCodes}, {"true", Residence::kAll}};
  if (residences.count(resident) == 0) {
    throw StatusError(
        TRITONSERVER_ERROR_INVALID_ARG,
        "--backend-config=recengine,resident: expected false, codes or true, found '" + resident +
            "'");
  }
  return {static_cast<int>(std::min(number("threads"), kMostThreads)), number("gpu-table-bytes"),
          residences.at(resident)};
}

}  // namespace recengine::triton
