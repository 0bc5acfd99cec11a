#include "engine/device_engine.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "engine/device_item_search.h"
#include "engine/device_lookup.h"
#include "engine/device_values.h"
#include "engine/user_features.h"
#include "engine/version.h"
#include "ops/stage_values.h"
#include "recengine/error.h"
#include "recengine/ops/order.h"

namespace recengine {
namespace {

class DeviceEngine : public Engine {
 public:
  DeviceEngine(const std::string& directory, const EngineOptions& options, ThreadPool& pool)
      : version_(directory, pool, /*resident=*/false),
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
    user_lookup_->run(context_of(work), users, sparse);
  }

  void look_up(const UserBatch& users, const CandidateBatch& candidates, const RankerInputs& out,
               const DeviceWork& work) const override {
    require_stage(*this, Stage::kRankingLookup);
    const CudaContext context = context_of(work);
    ranking_lookup_->run(context, users, out.sparse);
    if (candidates.item_ids.cols > 0) {
      candidate_lookup_->run(context, candidates, out.items, out.item_scores);
      return;
    }
    const std::vector<int64_t> no_ids(static_cast<size_t>(users.ids.size), kNoItem);
    const DeviceValues<int64_t> ids(context, Span<const int64_t>(no_ids));
    const DeviceValues<float> scores(context, users.ids.size);
    const CandidateBatch empty_slots = {ids.matrix(users.ids.size), scores.matrix(users.ids.size)};
    candidate_lookup_->run(context, empty_slots, out.items, out.item_scores);
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
    const CudaContext context = context_of(work);
    const int64_t batch = users.ids.size;
    const int64_t n = candidates.item_ids.cols;
    std::vector<uint8_t> is_known(static_cast<size_t>(batch));
    for (const int64_t user : known) is_known[static_cast<size_t>(user)] = 1;
    DeviceUpload upload;
    const auto flags = upload.add(is_known);
    const auto found =
        upload.add(std::vector<int32_t>(2));  // not finite: scores given, scores used
    upload.copy(context);
    Matrix<const float> scores = graph_scores;
    std::optional<DeviceValues<float>> chosen;
    if (static_cast<int64_t>(known.size()) < batch || n == 0) {
      chosen.emplace(context, batch * n);
      const Matrix<float> out_scores(chosen->data(), batch, n);
      choose_scores_cuda(context, upload[flags], graph_scores, candidates.scores, out_scores);
      scores = out_scores;
    }
    const Span<const int64_t> ids(candidates.item_ids.data, batch * n);
    find_not_finite_cuda(context, ids, {candidates.scores.data, batch * n}, upload.data(found));
    find_not_finite_cuda(context, ids, {scores.data, batch * n}, upload.data(found) + 1);
    order_cuda(context, candidates.item_ids, scores, out.item_ids, out.scores);
    const std::vector<int32_t> not_finite = host_copy(context, upload.data(found), found.size);
    if (not_finite[0] != 0) fail_candidate_scores(context, candidates);
    if (not_finite[1] == 0) return;
    order_cuda({device_, work.stream, /*check=*/true}, candidates.item_ids, scores, out.item_ids,
               out.scores);
    throw DeviceError("[ranking] graph_scores: changed while they were read");
  }

 private:
  // What the stages hand to the operations is in range.
  CudaContext context_of(const DeviceWork& work) const {
    if (work.slot != nullptr) return work.slot->context();
    return {device_, work.stream, /*check=*/false};
  }

  // On the host, where the message is made.
  [[noreturn]] void fail_candidate_scores(const CudaContext& context,
                                          const CandidateBatch& candidates) const {
    const int64_t rows = candidates.scores.rows;
    const int64_t cols = candidates.scores.cols;
    const std::vector<int64_t> ids = host_copy(context, candidates.item_ids.data, rows * cols);
    const std::vector<float> scores = host_copy(context, candidates.scores.data, rows * cols);
    check_scores(version_.schema, {{ids.data(), rows, cols}, {scores.data(), rows, cols}});
    throw DeviceError("[ranking] candidate_scores: changed while they were read");
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
