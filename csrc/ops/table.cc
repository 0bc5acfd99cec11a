#include "recengine/table.h"

namespace recengine {

int64_t row_type_bytes(RowType type) {
  switch (type) {
    case RowType::kFloat32:
      return 4;
    case RowType::kFloat16:
      return 2;
    case RowType::kInt8:
      return 1;
  }
  return 0;
}

}  // namespace recengine
