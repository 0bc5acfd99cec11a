#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "recengine/engine.h"
#include "triton/api.h"

namespace recengine::triton {

// What the requests of a stage bring beside their users, and ask for.
struct StageRequest {
  bool candidates;           // candidates and candidate_scores
  const char* graph_output;  // input that a dense graph gave; null: none
  const char* count;         // parameter that says how many items to answer; null: no items
};

const StageRequest& request_of(Stage stage);

// The tensor in which a step of an ensemble tells those after it when the request is to be
// answered, INT64 [batch, 1], ns of the server's steady clock: Triton gives each step the whole
// timeout again.
constexpr const char* kDeadline = "deadline";

// What a model's config.pbtxt says.
struct ModelConfig {
  struct Tensor {
    std::string name;
    std::string data_type;      // "TYPE_INT64"
    std::vector<int64_t> dims;  // without the batch
  };
  std::string name;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  int64_t max_batch_rows = 0;
  int64_t max_queue_rows = 4096;           // parameter recengine.max_queue_rows
  int64_t default_timeout_us = 1'000'000;  // parameter recengine.default_timeout_us
  int64_t max_candidates = 0;   // of parameter recengine.schema, what clients are told; 0: not said
  int64_t num_warmups = 0;      // requests that the server sends itself to each new instance
  bool reads_deadline = false;  // has the optional input kDeadline
  Stage stage = Stage::kRetrieval;  // see served_stage()
};

// Reads the JSON that the server gives. Throws StatusError naming the field.
ModelConfig parse_config(const std::string& json);

// The stage that a model with this config asks of its version: the one that is there; of a version
// with both retrieval and ranking, ranking when the config has the input `candidates`.
Stage served_stage(const ModelConfig& config, const Engine& engine);

// Throws StatusError naming the tensor when the config does not fit the engine that was loaded.
void check_config(const ModelConfig& config, const Engine& engine);

// What `--backend-config=recengine,<key>=<value>` asks for; 0 where it does not say.
struct BackendConfig {
  int threads = 0;              // threads
  int64_t gpu_table_bytes = 0;  // gpu-table-bytes, of each model
  Residence resident = Residence::kCodes;
};

BackendConfig parse_backend_config(const std::string& json);

}  // namespace recengine::triton
