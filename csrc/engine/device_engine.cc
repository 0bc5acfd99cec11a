#include "engine/device_engine.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "engine/device_item_search.h"
#include "engine/device_lookup.h"
#include "engine/device_values.h"
#include "engine/user_features.h"
#include "engine/version.h"
#include "ops/order_check.h"
#include "ops/stage_values.h"
#include "recengine/error.h"

namespace recengine {
namespace {

class DeviceEngine : public Engine {
 public:
  DeviceEngine(const std::string& directory, const EngineOptions& options, ThreadPool& pool)
      : version_(directory, pool, Residence::kNone),
        device_(options.device),
        tables_(version_.manifest, version_.assets, device_, options.device_table_bytes) {
    if (version_.manifest.retrieval) load_retrieval(pool);
    if (version_.manifest.ranking) load_ranking();
  }

  const Schema& schema() const override { return version_.schema; }
  EngineMemory memory() const override {
    EngineMemory memory = version_.files.memory();
    memory.device_tables = tables_.bytes();
    memory.device_shared = tables_.bytes_shared();
    return memory;
  }
  int device() const override { return device_; }

  bool has(Stage stage) const override {
    const bool has_graph = stage == Stage::kRetrieval || stage == Stage::kRanking;
    return !has_graph && version_.has(stage);
  }

  GraphWidths widths() const override {
    GraphWidths widths;
    if (user_lookup_) widths.retrieval_sparse = user_lookup_->width();
    if (search_) widths.user = search_->dim();
    if (ranking_lookup_) widths.ranking_sparse = ranking_lookup_->width();
    if (candidate_lookup_) widths.item = candidate_lookup_->dim();
    return widths;
  }

  int64_t threads_worth(Stage, int64_t) const override { return 1; }

  void retrieve(const UserBatch&, Recommendations) const override {
    require_stage(*this, Stage::kRetrieval);
  }
  void rank(const UserBatch&, const CandidateBatch&, Recommendations) const override {
    require_stage(*this, Stage::kRanking);
  }

  void look_up(const UserBatch& users, Matrix<float> sparse,
               const DeviceWork& work) const override {
    require_stage(*this, Stage::kRetrievalLookup);
    const CudaContext context = context_of(work);
    DeviceUpload upload;
    const DeviceLookup::Bags bags = user_lookup_->find_bags(users, upload);
    upload.copy(context);
    run_by(work.slot,
           {static_cast<int64_t>(Stage::kRetrievalLookup), sparse.rows, bags.rows.size,
            address(upload.data()), address(sparse.data)},
           [&] { user_lookup_->pool(context, upload, bags, sparse); });
  }

  void look_up(const UserBatch& users, const CandidateBatch& candidates, const RankerInputs& out,
               const DeviceWork& work) const override {
    require_stage(*this, Stage::kRankingLookup);
    const CudaContext context = context_of(work);
    const auto batch = static_cast<size_t>(out.item_scores.rows);
    const int64_t n = out.item_scores.cols;
    const bool empty = candidates.item_ids.cols == 0;  // an empty slot each
    DeviceUpload upload;
    const auto lengths = upload.add(std::vector<int32_t>(batch, static_cast<int32_t>(n)));
    const auto no_ids = upload.add(std::vector<int64_t>(empty ? batch : 0, kNoItem));
    const auto no_scores = upload.add(std::vector<float>(empty ? batch : 0));
    const DeviceLookup::Bags bags = ranking_lookup_->find_bags(users, upload);
    upload.copy(context);
    CandidateBatch slots;
    if (empty) {
      slots = {{upload.data(no_ids), out.item_scores.rows, n},
               {upload.data(no_scores), out.item_scores.rows, n}};
    } else {
      slots = {in_scratch(context, candidates.item_ids), in_scratch(context, candidates.scores)};
    }
    run_by(work.slot,
           {static_cast<int64_t>(Stage::kRankingLookup), out.item_scores.rows, n, empty,
            bags.rows.size, address(upload.data()), address(slots.item_ids.data),
            address(slots.scores.data), address(out.sparse.data), address(out.items.data),
            address(out.item_scores.data)},
           [&] {
             ranking_lookup_->pool(context, upload, bags, out.sparse);
             candidate_lookup_->run(context, slots, upload[lengths], out.items, out.item_scores);
           });
  }

  void search(const UserBatch& users, Matrix<const float> vectors, Recommendations out,
              const DeviceWork& work) const override {
    require_stage(*this, Stage::kTopK);
    static thread_local std::vector<int64_t> known;
    retrieval_features_->find_known(users, known);
    search_->run(context_of(work), work.slot, users, known, vectors, out);
  }

  void order(const UserBatch& users, const CandidateBatch& candidates,
             Matrix<const float> graph_scores, Recommendations out,
             const DeviceWork& work) const override {
    require_stage(*this, Stage::kOrder);
    static thread_local std::vector<int64_t> known;
    ranking_features_->find_known(users, known);
    std::vector<uint8_t> is_known(static_cast<size_t>(users.ids.size));
    for (const int64_t user : known) is_known[static_cast<size_t>(user)] = 1;
    const CudaContext context = context_of(work);
    DeviceUpload upload;
    const auto flags = upload.add(is_known);
    const auto not_finite = upload.add(std::vector<int32_t>(2));
    upload.copy(context);
    const RankedCandidates ranked = {candidates.item_ids, candidates.scores, graph_scores.data,
                                     upload[flags], upload.data(not_finite)};
    order_candidates_cuda(context, ranked, out.item_ids, out.scores);
    const std::vector<int32_t> found = host_copy(context, ranked.not_finite, not_finite.size);
    if (found[0] != 0 || found[1] != 0) fail_scores(context, ranked, is_known);
  }

 private:
  // What the stages hand to the operations is in range.
  CudaContext context_of(const DeviceWork& work) const {
    if (work.slot != nullptr) return work.slot->context();
    return {device_, work.stream, /*check=*/false};
  }

  // On the host, where the message is made.
  [[noreturn]] void fail_scores(const CudaContext& context, const RankedCandidates& ranked,
                                const std::vector<uint8_t>& is_known) const {
    const int64_t rows = ranked.ids.rows;
    const int64_t cols = ranked.ids.cols;
    const std::vector<int64_t> ids = host_copy(context, ranked.ids.data, rows * cols);
    const std::vector<float> own = host_copy(context, ranked.own.data, rows * cols);
    check_scores(version_.schema, {{ids.data(), rows, cols}, {own.data(), rows, cols}});
    std::vector<float> counted = host_copy(context, ranked.graph, rows * cols);
    for (int64_t row = 0; row < rows; ++row) {
      if (is_known[static_cast<size_t>(row)] != 0) continue;
      std::copy_n(own.data() + row * cols, cols, counted.data() + row * cols);
    }
    check_order_scores({ids.data(), rows, cols}, {counted.data(), rows, cols});
    throw DeviceError("[ranking] scores: changed while they were read");
  }

  void load_retrieval(ThreadPool& pool) {
    const Manifest& manifest = version_.manifest;
    const Assets& assets = version_.assets;
    retrieval_features_.emplace(manifest, manifest.retrieval->bags, assets);
    if (has(Stage::kRetrievalLookup)) {
      user_lookup_.emplace("retrieval", manifest, manifest.retrieval->bags, assets, tables_);
    }
    if (has(Stage::kTopK)) search_.emplace(manifest, assets, version_.files, pool, device_);
  }

  void load_ranking() {
    const Manifest& manifest = version_.manifest;
    const Assets& assets = version_.assets;
    ranking_features_.emplace(manifest, manifest.ranking->bags, assets);
    if (!has(Stage::kRankingLookup)) return;
    ranking_lookup_.emplace("ranking", manifest, manifest.ranking->bags, assets, tables_);
    candidate_lookup_.emplace(manifest, assets, tables_, device_);
  }

  Version version_;
  int device_;
  DeviceTables tables_;
  std::optional<UserFeatures> retrieval_features_;
  std::optional<DeviceLookup> user_lookup_;
  std::optional<DeviceItemSearch> search_;
  std::optional<UserFeatures> ranking_features_;
  std::optional<DeviceLookup> ranking_lookup_;
  std::optional<DeviceCandidateLookup> candidate_lookup_;
};

}  // namespace

std::unique_ptr<Engine> load_on_device(const std::string& directory, const EngineOptions& options,
                                       ThreadPool& pool) {
  return std::make_unique<DeviceEngine>(directory, options, pool);
}

}  // namespace recengine
