#include "engine/device_item_search.h"

#include <utility>

#include "engine/device_values.h"
#include "engine/item_search.h"
#include "ops/stage_values.h"
#include "recengine/ops/cosine_topk.h"

namespace recengine {
namespace {

// What goes to the device for the users of a batch.
struct UserLists {
  std::vector<int64_t> exclude_rows;
  std::vector<int32_t> exclude_lengths;  // [users]
  std::vector<int32_t> fallback;         // [users], row in the lists below; -1: none
  std::vector<int64_t> fallback_ids;     // [users with nothing known, k]
  std::vector<float> fallback_scores;

  void clear() {
    exclude_rows.clear();
    exclude_lengths.clear();
    fallback.clear();
    fallback_ids.clear();
    fallback_scores.clear();
  }
};

void append_fallback(const ItemAssets& items, const UserBatch& users, int64_t user, int64_t k,
                     UserLists& lists) {
  const size_t begin = lists.fallback_ids.size();
  lists.fallback.push_back(static_cast<int32_t>(static_cast<int64_t>(begin) / k));
  lists.exclude_lengths.push_back(0);
  lists.fallback_ids.resize(begin + static_cast<size_t>(k));
  lists.fallback_scores.resize(lists.fallback_ids.size());
  items.fall_back(users, user, {lists.fallback_ids.data() + begin, k},
                  {lists.fallback_scores.data() + begin, k});
}

void make_lists(const ItemAssets& items, const UserBatch& users, const std::vector<int64_t>& known,
                int64_t k, UserLists& lists) {
  lists.clear();
  auto next = known.begin();
  for (int64_t user = 0; user < users.ids.size; ++user) {
    if (next == known.end() || *next != user) {
      append_fallback(items, users, user, k, lists);
      continue;
    }
    ++next;
    const size_t before = lists.exclude_rows.size();
    items.append_excluded(users, user, lists.exclude_rows);
    lists.exclude_lengths.push_back(static_cast<int32_t>(lists.exclude_rows.size() - before));
    lists.fallback.push_back(-1);
  }
  if (lists.exclude_rows.empty()) lists.exclude_lengths.clear();
}

// Calls with lists of the same are one graph.
template <typename T>
int64_t few_lengths(const std::vector<T>& list, int64_t step) {
  return few_sizes(static_cast<int64_t>(list.size()) / step, 4) * step;
}

// Waits for the search.
void require_finite(const CudaContext& context, const std::vector<int64_t>& known,
                    const DeviceValues<TopKCertificate>& certificates) {
  const std::vector<TopKCertificate> found =
      host_copy(context, certificates.data(), certificates.span().size);
  for (const int64_t user : known) {
    if (found[static_cast<size_t>(user)].scored < 0) fail_vector(user);
  }
}

// The index goes to the device, and of the host only its mapped vectors remain.
DeviceItemIndex take_index(ItemAssets& items, int device, ThreadPool& pool) {
  return DeviceItemIndex::copy(std::exchange(items.index, ItemIndex()), device, &pool);
}

}  // namespace

DeviceItemSearch::DeviceItemSearch(const Manifest& manifest, const Assets& assets,
                                   BundleFiles& files, ThreadPool& pool, int device)
    : items_(load_items(*manifest.retrieval, assets.vocabulary(manifest.item_vocabulary), files,
                        pool)),
      index_(take_index(items_, device, pool)),
      keys_(copy_resident(items_.keys.data, items_.keys.size, device)) {}

void DeviceItemSearch::run(const CudaContext& context, DeviceSlot* slot, const UserBatch& users,
                           const std::vector<int64_t>& known, Matrix<const float> vectors,
                           Recommendations out) const {
  const int64_t batch = users.ids.size;
  const int64_t k = out.item_ids.cols;
  static thread_local UserLists lists;
  make_lists(items_, users, known, k, lists);
  DeviceUpload upload;
  const auto exclude_lengths = upload.add(lists.exclude_lengths);
  const auto fallback = upload.add(lists.fallback);
  const auto fallback_ids = upload.add(lists.fallback_ids, few_lengths(lists.fallback_ids, k));
  const auto fallback_scores =
      upload.add(lists.fallback_scores, few_lengths(lists.fallback_scores, k));
  const auto exclude_rows = upload.add(lists.exclude_rows, few_lengths(lists.exclude_rows, 1));
  upload.copy(context);
  const DeviceValues<int64_t> rows(context, batch * k);
  const DeviceValues<TopKCertificate> certificates(context, batch);
  const Matrix<const float> queries = in_scratch(context, vectors);
  const auto search = [&] {
    cosine_topk_cuda(context, index_, {queries, upload[exclude_rows], upload[exclude_lengths]},
                     rows.matrix(batch), out.scores, certificates.data());
    finish_topk_cuda(context, {rows.matrix(batch),
                               {static_cast<const int64_t*>(keys_.get()), items_.keys.size},
                               upload[fallback],
                               {upload[fallback_ids].data, fallback_ids.size / k, k},
                               {upload[fallback_scores].data, fallback_scores.size / k, k},
                               out.item_ids,
                               out.scores});
  };
  run_by(slot,
         {static_cast<int64_t>(Stage::kTopK), batch, k, exclude_rows.size, exclude_lengths.size,
          fallback_ids.size, address(upload.data()), address(rows.data()),
          address(certificates.data()), address(queries.data), address(out.item_ids.data),
          address(out.scores.data)},
         search);
  require_finite(context, known, certificates);
}

}  // namespace recengine
