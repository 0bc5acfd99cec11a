#include "ops/item_codes_loop.h"

namespace recengine {

const PackKernel kPackPortable = {largest_of, pack_codes};

}  // namespace recengine
