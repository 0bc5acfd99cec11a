#include "recengine/item_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/huge_pages.h"
#include "cpu/thread_pool.h"
#include "ops/item_codes.h"
#include "ops/item_rows.h"
#include "ops/search.h"
#include "recengine/error.h"

namespace recengine {
namespace {

void check_shape(int64_t rows, int64_t dim) {
  if (dim < 1) {
    throw InputError("[item_index] vectors: expected dim at least 1, found " + std::to_string(dim));
  }
  // A row fits 31 bits beside its score in one 64-bit sort key.
  if (rows < 0 || rows > std::numeric_limits<int32_t>::max()) {
    throw InputError("[item_index] vectors: expected at most 2147483647 rows, found " +
                     std::to_string(rows));
  }
}

// Vectors of fewer values are in the caches anyway.
constexpr int64_t kLeastCoded = 1 << 19;

std::shared_ptr<const ItemCodes> codes_of(const ItemVectors& unit_vectors, ThreadPool* pool,
                                          std::optional<bool> split) {
  const bool large = unit_vectors.rows() * unit_vectors.dim() >= kLeastCoded;
  if (!large || unit_vectors.dim() > kMostCodedDims) return nullptr;
  const Context context = {pool, default_isa()};
  const std::shared_ptr<const Rotation> rotation = Rotation::find(unit_vectors, pool);
  const bool apart = split ? *split : worth_splitting(unit_vectors, rotation, context);
  return ItemCodes::pack(unit_vectors, rotation, apart, context);
}

constexpr int64_t kRowsPerTask = 512;

}  // namespace

ItemIndex ItemIndex::build(Matrix<const float> vectors, ThreadPool* pool,
                           std::optional<bool> split) {
  check_shape(vectors.rows, vectors.cols);
  std::shared_ptr<float> owned(allocate_huge<float>(vectors.rows * vectors.cols).release(),
                               FreeMemory());
  const int64_t tasks = (vectors.rows + kRowsPerTask - 1) / kRowsPerTask;
  std::vector<int64_t> bad(static_cast<size_t>(tasks), -1);  // the first of each
  for_each(pool, tasks, [&](int64_t task) {
    const int64_t first = task * kRowsPerTask;
    for (int64_t row = std::min(first + kRowsPerTask, vectors.rows) - 1; row >= first; --row) {
      if (!normalise(vectors.row(row), vectors.cols, owned.get() + row * vectors.cols)) {
        bad[static_cast<size_t>(task)] = row;
      }
    }
  });
  for (const int64_t row : bad) {
    if (row < 0) continue;
    throw InputError("[item_index] vectors: row " + std::to_string(row) +
                     ": expected finite values");
  }
  ItemIndex index;
  index.unit_vectors_.floats = Matrix<const float>(owned.get(), vectors.rows, vectors.cols);
  index.owned_ = std::move(owned);
  index.codes_ = codes_of(index.unit_vectors_, pool, split);
  return index;
}

ItemIndex ItemIndex::from_unit_vectors(const ItemVectors& unit_vectors, ThreadPool* pool,
                                       std::optional<bool> split) {
  check_shape(unit_vectors.rows(), unit_vectors.dim());
  ItemIndex index;
  index.unit_vectors_ = unit_vectors;
  index.codes_ = codes_of(unit_vectors, pool, split);
  return index;
}

ItemIndex ItemIndex::of_rows(const ItemIndex& index, Span<const uint32_t> rows,
                             const Context& context) {
  const int64_t dim = index.dim();
  std::shared_ptr<float> owned(new float[static_cast<size_t>(rows.size * dim)],
                               std::default_delete<float[]>());
  const int64_t tasks = (rows.size + kRowsPerTask - 1) / kRowsPerTask;
  for_each(context.pool, tasks, [&](int64_t task) {
    const int64_t first = task * kRowsPerTask;
    const int64_t count = std::min(kRowsPerTask, rows.size - first);
    copy_rows(index.unit_vectors(), {rows.data + first, rows.size - first}, count, context.isa,
              owned.get() + first * dim);
  });
  ItemIndex some;
  some.unit_vectors_.floats = Matrix<const float>(owned.get(), rows.size, dim);
  some.owned_ = std::move(owned);
  if (index.codes() != nullptr) {
    some.codes_ = ItemCodes::pack(some.unit_vectors_, nullptr, /*split=*/false, context);
  }
  return some;
}

ItemIndex ItemIndex::with_codes(const ItemVectors& unit_vectors, const StoredCodes& stored) {
  check_shape(unit_vectors.rows(), unit_vectors.dim());
  ItemIndex index;
  index.unit_vectors_ = unit_vectors;
  index.codes_ = ItemCodes::load(unit_vectors, stored);
  return index;
}

int64_t ItemIndex::threads_worth(int64_t queries) const {
  const int64_t per_thread = codes_ == nullptr ? kScanProductsPerChunk : kCodeProductsPerChunk;
  return std::max<int64_t>(rows() * dim() * queries / per_thread, 1);
}

std::vector<int64_t> ItemIndex::partial_scans() const {
  std::vector<int64_t> dims;
  if (codes_ == nullptr || codes_->rotation() == nullptr) return dims;
  for (const PartialScan& scan : codes_->rotation()->scans()) dims.push_back(scan.dims);
  std::sort(dims.begin(), dims.end());
  return dims;
}

bool ItemIndex::split_codes() const { return codes_ != nullptr && codes_->split(); }

std::optional<StoredCodes> ItemIndex::stored_codes() const {
  if (codes_ == nullptr) return std::nullopt;
  return codes_->store();
}

bool normalise(const float* in, int64_t dim, float* out) {
  double squares = 0;
  for (int64_t i = 0; i < dim; ++i) squares += static_cast<double>(in[i]) * in[i];
  if (!std::isfinite(squares)) return false;
  const double norm = squares > 0 ? std::sqrt(squares) : 1;
  for (int64_t i = 0; i < dim; ++i) out[i] = static_cast<float>(in[i] / norm);
  return true;
}

}  // namespace recengine
