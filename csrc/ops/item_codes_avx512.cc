#include "ops/item_codes_loop.h"

namespace recengine {

const PackKernel kPackAvx512 = {largest_of, pack_codes};

}  // namespace recengine
