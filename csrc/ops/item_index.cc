#include "recengine/item_index.h"

#include <cmath>
#include <limits>
#include <string>

#include "recengine/error.h"

namespace recengine {
namespace {

void check_shape(Matrix<const float> vectors) {
  if (vectors.cols < 1) {
    throw InputError("[item_index] vectors: expected dim at least 1, found " +
                     std::to_string(vectors.cols));
  }
  // A row fits 31 bits beside its score in one 64-bit sort key.
  if (vectors.rows < 0 || vectors.rows > std::numeric_limits<int32_t>::max()) {
    throw InputError("[item_index] vectors: expected at most 2147483647 rows, found " +
                     std::to_string(vectors.rows));
  }
}

}  // namespace

ItemIndex ItemIndex::build(Matrix<const float> vectors) {
  check_shape(vectors);
  std::shared_ptr<float> owned(new float[static_cast<size_t>(vectors.rows * vectors.cols)],
                               std::default_delete<float[]>());
  for (int64_t row = 0; row < vectors.rows; ++row) {
    if (!normalise(vectors.row(row), vectors.cols, owned.get() + row * vectors.cols)) {
      throw InputError("[item_index] vectors: row " + std::to_string(row) +
                       ": expected finite values");
    }
  }
  ItemIndex index;
  index.unit_vectors_ = Matrix<const float>(owned.get(), vectors.rows, vectors.cols);
  index.owned_ = std::move(owned);
  return index;
}

ItemIndex ItemIndex::from_unit_vectors(Matrix<const float> unit_vectors) {
  check_shape(unit_vectors);
  ItemIndex index;
  index.unit_vectors_ = unit_vectors;
  return index;
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
