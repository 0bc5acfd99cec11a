// The twin of csrc/cuda/*.cu and csrc/ops/*_cuda.cu in a build without CUDA: the same names, which
// throw.

#include "ops/stage_values.h"
#include "recengine/cuda.h"
#include "recengine/device_item_index.h"
#include "recengine/device_table.h"
#include "recengine/device_vocabulary.h"
#include "recengine/error.h"
#include "recengine/ops/cosine_topk.h"
#include "recengine/ops/embedding_bag.h"
#include "recengine/ops/order.h"
#include "recengine/stream_uses.h"

namespace recengine {
namespace {

[[noreturn]] void fail() {
  throw DeviceError("[cuda] this build has no CUDA parts; rebuild with -DRECENGINE_CUDA=ON");
}

}  // namespace

bool cuda_built() { return false; }
std::vector<CudaDevice> cuda_devices() { fail(); }
std::shared_ptr<void> allocate_on_device(int64_t, int, CudaStream) { fail(); }
std::shared_ptr<void> allocate_resident(int64_t, int) { fail(); }
std::shared_ptr<void> allocate_for_calls(int64_t, int) { fail(); }
std::shared_ptr<void> allocate_mapped(int64_t, int) { fail(); }
void copy_to_device(void*, const void*, int64_t, int, CudaStream) { fail(); }
void copy_to_host(void*, const void*, int64_t, int, CudaStream) { fail(); }
void copy_async(void*, const void*, int64_t, int, CudaStream) { fail(); }
void copy_rows_async(void*, int64_t, const void*, int64_t, int64_t, int, CudaStream) { fail(); }
void synchronize(int, CudaStream) { fail(); }
CudaStream thread_stream(int) { fail(); }
std::shared_ptr<void> make_stream(int) { fail(); }
DeviceGraph::DeviceGraph(int, CudaStream, const std::function<void()>&) { fail(); }
void DeviceGraph::launch(CudaStream) const { fail(); }
int device_of(const void*) { fail(); }
void order_after(int, CudaStream, CudaStream) { fail(); }
StreamUses::~StreamUses() = default;
StreamUse::StreamUse(int, CudaStream) { fail(); }
StreamUse::~StreamUse() = default;
void StreamUse::reads(StreamUses&) const {}

void finish_topk_cuda(const CudaContext&, const TopKAnswer&) { fail(); }
void order_candidates_cuda(const CudaContext&, const RankedCandidates&, Matrix<int64_t>,
                           Matrix<float>) {
  fail();
}
void slot_scores_cuda(const CudaContext&, Span<const int64_t>, Span<const float>, Span<float>) {
  fail();
}

DeviceItemIndex DeviceItemIndex::copy(const ItemIndex&, int, ThreadPool*) { fail(); }
void cosine_topk_cuda(const CudaContext&, const DeviceItemIndex&, const TopKQuery&, Matrix<int64_t>,
                      Matrix<float>, TopKCertificate*) {
  fail();
}
void pack_bitmap_cuda(const CudaContext&, Span<const uint8_t>, Span<uint64_t>) { fail(); }
DeviceTable DeviceTable::copy(const EmbeddingTable&, int) { fail(); }
int64_t DeviceTable::bytes_of_copy(const EmbeddingTable&) { fail(); }
DeviceTable DeviceTable::spill(const EmbeddingTable&, int, int64_t) { fail(); }
DeviceTable DeviceTable::borrow(EmbeddingTable) { fail(); }
int64_t DeviceTable::refresh() const { fail(); }
int64_t DeviceTable::warm(Span<const int64_t>) const { fail(); }
CacheStats DeviceTable::stats() const { fail(); }
DeviceVocabulary::DeviceVocabulary(const Vocabulary&, int) { fail(); }
void DeviceVocabulary::lookup(CudaStream, Span<const int64_t>, Span<int64_t>) const { fail(); }
void embedding_bag_cuda(const CudaContext&, Span<const BagColumn>, const BagInput&, Matrix<float>) {
  fail();
}
void order_cuda(const CudaContext&, Matrix<const int64_t>, Matrix<const float>, Matrix<int64_t>,
                Matrix<float>) {
  fail();
}

}  // namespace recengine
