#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "recengine/context.h"
#include "recengine/cuda.h"
#include "recengine/device_slot.h"
#include "recengine/tensor.h"

namespace recengine {

// What a caller must send and may ask for; read from the manifest.
struct Schema {
  struct Feature {
    std::string name;
    int64_t max_length = 0;  // ids kept, the last ones
    bool hashed = false;     // the caller hashes string keys to ids
  };
  std::string name;                              // of the recommender
  std::vector<Feature> features;                 // sparse user features, in wire order
  std::vector<std::string> dense_features;       // dense user features, in wire order
  std::map<std::string, double> dense_defaults;  // for callers: of one that a user does not have
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

// What a version directory can be asked for, in the order in which a request passes them. Whoever
// has retrieval or ranking has their stages, too.
enum class Stage : uint8_t {
  kRetrievalLookup,
  kTopK,
  kRetrieval,
  kRankingLookup,
  kOrder,
  kRanking
};
inline constexpr size_t kNumStages = static_cast<size_t>(Stage::kRanking) + 1;

// "topk", for messages.
const char* name_of(Stage stage);

// Widths of the tensors between the stages and the dense graphs; 0 where a version has none.
struct GraphWidths {
  int64_t retrieval_sparse = 0;
  int64_t user = 0;
  int64_t ranking_sparse = 0;
  int64_t item = 0;
};

// Slots per user that a graph outside the engine gets for n candidates: an empty one rather than
// none, for a graph without rows is not defined everywhere.
constexpr int64_t graph_slots(int64_t n) { return n > 0 ? n : 1; }

// What the ranking graph reads, beside the dense features; n = graph_slots(candidates).
struct RankerInputs {
  Matrix<float> sparse;       // [batch, width]
  Matrix<float> items;        // [batch * n, dim]
  Matrix<float> item_scores;  // [batch, n], 0 in an empty slot
};

// Where a stage on a GPU puts its work. With a slot, whose stream it then is, the kernels of a
// lookup or a search are a graph from the slot's second call of a shape on; order is a single
// kernel.
struct DeviceWork {
  CudaStream stream = nullptr;
  DeviceSlot* slot = nullptr;
};

// Which tensors are copied into memory: none, the 8-bit codes of a large catalog, of which every
// search reads all, or all; see EngineMemory.
enum class Residence : uint8_t { kNone, kCodes, kAll };

struct EngineOptions {
  ThreadPool* pool = nullptr;  // shared with other engines; null: the calling thread alone
  Isa isa = default_isa();
  int num_streams = 1;                     // threads that compute dense graphs at once
  Residence resident = Residence::kCodes;  // on a CPU
  int device = kHost;                      // a GPU for the stages beside the dense graphs
  int64_t device_table_bytes = 0;  // of its memory for tables; what does not fit stays on the host
};

// Bytes of a version's files, and of its tables in the memory of a GPU. Tensors that are resident
// are copies in memory, which the engines of a process share, in huge pages where the system gives
// them: they are read without walking page tables, and not from disk. Files of less than a huge
// page stay mapped.
struct EngineMemory {
  int64_t mapped = 0;
  int64_t resident = 0;
  int64_t huge = 0;  // of the resident ones: in huge pages
  int64_t device_tables = 0;
  int64_t device_shared = 0;  // of these: there before, for another engine
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
//
// Arrays other than the users' may lie on a GPU; their values are then not looked at (`on_host`
// false): order() refuses candidate scores that are not finite.
void check(const Schema& schema, const WireUsers& users);
void check(const Schema& schema, const WireUsers& users, const CandidateBatch& candidates,
           bool on_host = true);

// The same, and the shape of what a graph outside the engine gave: user vectors [batch, dim], or
// scores [batch, graph_slots(n)]. Their values are looked at by search() and order().
void check(const Schema& schema, const WireUsers& users, Matrix<const float> vectors, int64_t dim);
void check(const Schema& schema, const WireUsers& users, const CandidateBatch& candidates,
           Matrix<const float> graph_scores, bool on_host = true);

// The scores of candidates alone, which are on the host.
void check_scores(const Schema& schema, const CandidateBatch& candidates);

// One version directory, verified against its manifest, memory-mapped, immutable. All members are
// safe to call from many threads at once; what a call needs lives on its stack.
// Batches are made of users that passed check().
class Engine {
 public:
  // Throws BundleError naming the file when anything is missing, damaged or unknown.
  static std::unique_ptr<Engine> load(const std::string& directory, const EngineOptions& options);

  virtual ~Engine() = default;

  virtual const Schema& schema() const = 0;
  virtual int device() const = 0;
  virtual bool has(Stage stage) const = 0;
  virtual GraphWidths widths() const = 0;
  virtual EngineMemory memory() const = 0;

  // How many of the host's threads a batch of the stage could keep busy by itself, at least 1.
  virtual int64_t threads_worth(Stage stage, int64_t rows) const = 0;

  // The k nearest items of each user; a user with nothing known gets the fallback list.
  virtual void retrieve(const UserBatch& users, Recommendations out) const = 0;

  // The k best candidates of each user; a user with nothing known keeps the candidates' own order.
  virtual void rank(const UserBatch& users, const CandidateBatch& candidates,
                    Recommendations out) const = 0;

  // The stages of both alone, for graphs that run elsewhere; an engine on a GPU has no others.
  // There, users come from the host and all other arrays are memory of the device; the work is put
  // on the stream, and waited for where values decide whether it fails.

  // What the retrieval graph reads, [batch, width]; zeros for a user with nothing known.
  virtual void look_up(const UserBatch& users, Matrix<float> sparse,
                       const DeviceWork& work) const = 0;

  // What the ranking graph reads.
  virtual void look_up(const UserBatch& users, const CandidateBatch& candidates,
                       const RankerInputs& out, const DeviceWork& work) const = 0;

  // retrieve() after its graph. Throws InputError naming the user whose vector is not finite; the
  // vector of a user with nothing known is not read.
  virtual void search(const UserBatch& users, Matrix<const float> vectors, Recommendations out,
                      const DeviceWork& work) const = 0;

  // rank() after its graph. Throws InputError naming the score that is not finite; the scores of a
  // user with nothing known are not read.
  virtual void order(const UserBatch& users, const CandidateBatch& candidates,
                     Matrix<const float> graph_scores, Recommendations out,
                     const DeviceWork& work) const = 0;

  // retrieve() of num_candidates, then rank().
  void recommend(const UserBatch& users, int64_t num_candidates, Recommendations out) const;
};

}  // namespace recengine
