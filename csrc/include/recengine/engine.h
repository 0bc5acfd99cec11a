#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "recengine/context.h"
#include "recengine/tensor.h"

namespace recengine {

// What a caller must send and may ask for; read from the manifest.
struct Schema {
  struct Feature {
    std::string name;
    int64_t max_length = 0;  // ids kept, the last ones
    bool hashed = false;     // the caller hashes string keys to ids
  };
  std::string name;                         // of the recommender
  std::vector<Feature> features;            // sparse user features, in wire order
  std::vector<std::string> dense_features;  // dense user features, in wire order
  int64_t num_items = 0;
  int64_t num_candidates = 0;  // retrieved when the caller does not say
  int64_t max_candidates = 0;  // most that a request may ask for
  int64_t k = 0;               // returned when the caller does not say
  bool hashed_items = false;   // the caller hashes string keys of items to ids
};

// A batch of users; borrowed. ids[b] points at user b's raw ids: features in schema order, the
// excluded items last, as many of each as lengths says. Users of one batch may come from requests
// whose rows have different widths.
struct UserBatch {
  Span<const int64_t* const> ids;  // [batch]
  Matrix<const int32_t> lengths;   // [batch, features + 1]
  Matrix<const float> dense;       // [batch, dense features]
};

// Items to rank; borrowed. Id -1 is an empty slot.
struct CandidateBatch {
  Matrix<const int64_t> item_ids;  // [batch, n]
  Matrix<const float> scores;      // [batch, n]
};

// Where an answer goes; borrowed. Best first, padded with -1 and -inf.
struct Recommendations {
  Matrix<int64_t> item_ids;  // [batch, k]
  Matrix<float> scores;      // [batch, k]
};

struct EngineOptions {
  ThreadPool* pool = nullptr;  // shared with other engines; null: the calling thread alone
  Isa isa = default_isa();
  int num_streams = 1;  // threads that compute dense graphs at once
};

// Users as they stand on the wire: ids [batch, width], lengths [batch, features + 1], dense
// [batch, dense features]. What lies behind a row's lengths is padding.
struct WireUsers {
  Matrix<const int64_t> ids;
  Matrix<const int32_t> lengths;
  Matrix<const float> dense;
};

// Check what a caller sent against the schema: shapes, lengths (>= 0, sum within the row), finite
// dense values and scores. Throw InputError naming the tensor, the position, what was expected and
// what was found. A batch that passes cannot make the engine read outside it.
void check(const Schema& schema, const WireUsers& users);
void check(const Schema& schema, const WireUsers& users, const CandidateBatch& candidates);

// One version directory, verified against its manifest, memory-mapped, immutable. All members are
// safe to call from many threads at once; what a call needs lives on its stack.
// Batches are made of users that passed check().
class Engine {
 public:
  // Throws BundleError naming the file when anything is missing, damaged or unknown.
  static std::unique_ptr<Engine> load(const std::string& directory, const EngineOptions& options);

  virtual ~Engine() = default;

  virtual const Schema& schema() const = 0;
  virtual bool has_retrieval() const = 0;
  virtual bool has_ranking() const = 0;

  // The k nearest items of each user; a user with nothing known gets the fallback list.
  virtual void retrieve(const UserBatch& users, Recommendations out) const = 0;

  // The k best candidates of each user; a user with nothing known keeps the candidates' own order.
  virtual void rank(const UserBatch& users, const CandidateBatch& candidates,
                    Recommendations out) const = 0;

  // retrieve() of num_candidates, then rank().
  void recommend(const UserBatch& users, int64_t num_candidates, Recommendations out) const;
};

}  // namespace recengine
