#include "ops/best_keys.h"

#include <algorithm>
#include <functional>

#include "ops/rank.h"
#include "ops/sort_key.h"

namespace recengine {
namespace {

constexpr int64_t kMostCounted = 160;  // or a sort takes less
constexpr uint64_t kNoKey = 0;         // of no finite score

// Drops most of those that are not among the best `count`: a selection by comparisons of keys
// mispredicts branches.
void drop_most(std::vector<uint64_t>& keys, int64_t count) {
  constexpr size_t kMostKept = 1 << 16;
  static thread_local std::vector<float> memory;
  std::vector<float> many;  // which no thread keeps
  std::vector<float>& scores = keys.size() > kMostKept ? many : memory;
  scores.resize(keys.size());
  std::transform(keys.begin(), keys.end(), scores.begin(), key_score);
  const float least = value_of_rank(scores, count);
  size_t kept = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    keys[kept] = keys[i];
    kept += scores[i] >= least ? 1 : 0;
  }
  keys.resize(kept);
}

// Puts keys in order by how many scores are above each: as many comparisons as it takes, they are
// vector code, and a sort mispredicts branches. False, and nothing is done, where scores are equal.
bool sort_by_counting(std::vector<uint64_t>& keys) {
  static thread_local std::vector<float> scores;
  static thread_local std::vector<uint64_t> sorted;
  scores.resize(keys.size());
  std::transform(keys.begin(), keys.end(), scores.begin(), key_score);
  sorted.assign(keys.size(), kNoKey);
  const Span<const float> all(scores);
  for (const uint64_t key : keys) {
    const float score = key_score(key);
    int32_t above = 0;
    for (const float other : all) above += other > score ? 1 : 0;
    uint64_t& place = sorted[static_cast<size_t>(above)];
    if (place != kNoKey) return false;
    place = key;
  }
  keys.swap(sorted);
  return true;
}

}  // namespace

void sort_best(std::vector<uint64_t>& keys, int64_t count) {
  constexpr int64_t kFew = 32;
  const auto size = static_cast<int64_t>(keys.size());
  if (size > count + kFew) drop_most(keys, count);
  const auto end = keys.begin() + std::min(count, static_cast<int64_t>(keys.size()));
  // Those that tie with the last may be many.
  if (keys.end() - end > count / 4 + kFew) {
    std::nth_element(keys.begin(), end, keys.end(), std::greater<>());
    keys.erase(end, keys.end());
  }
  const bool few = static_cast<int64_t>(keys.size()) <= kMostCounted;
  if (!few || !sort_by_counting(keys)) std::sort(keys.begin(), keys.end(), std::greater<>());
  keys.resize(static_cast<size_t>(std::min(count, static_cast<int64_t>(keys.size()))));
}

}  // namespace recengine
