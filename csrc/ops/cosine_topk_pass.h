#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/device_items.h"
#include "recengine/ops/cosine_topk.h"
#include "recengine/tensor.h"

namespace recengine::cuda {

constexpr int64_t kMostSorted = 4096;    // keys that a block of threads sorts in shared memory
constexpr int kRounds = 2;               // of scans of codes, before all items are scored
constexpr int kSampleGroups = 8;         // of a sampled block's items: those equal modulo it
constexpr int64_t kLeastPartRows = 256;  // that a worker scores when all items are scored
constexpr uint32_t kNoRow = 0xffffffffu;

// What the codes of a query tell, and what an item must reach to be wanted.
struct CodedQuery {
  float inverse_scale;  // of its codes
  float slack;          // of every bound
  float error_share;    // of a block's error that is added to that
  float wanted;         // the threshold of the round
};

// One pass of a search: some of its queries, and the memory they are worked on in. All of the
// device; arrays are by query of the pass unless said otherwise.
struct TopKPass {
  ItemsView items;
  int multiprocessors;
  bool has_wgmma;

  int32_t count;  // of queries
  int64_t first;  // of the call
  int64_t k;
  const float* queries;  // [count, dim], as the caller gave them
  const uint64_t* allow_bitmap;
  Span<const int64_t> exclude_rows;  // of the whole call, as the three below
  const int32_t* exclude_lengths;    // [batch]; null: nothing is excluded
  const int64_t* exclude_sums;       // [batch], of the lengths before
  uint32_t* exclude_slots;           // hash tables, twice as large as the lists and in their order
  int64_t* out_rows;                 // [count, k]
  float* out_scores;                 // [count, k]
  TopKCertificate* certificates;     // or null
  int* bad_value;                    // set when a value is out of range; or null

  int32_t padded_dim;  // a multiple of kScoreLanes
  float* units;        // [count, padded_dim]

  // The queries that each round is to answer, in any order; the last scores all items.
  int32_t* open[kRounds + 1];  // [count], of which [num_open]
  int32_t* num_open;           // [kRounds + 1]; zeros before a pass, as the two below
  int64_t* scored;             // items so far
  int32_t* found;              // survivors of a scan, those beyond the capacity included
  int64_t zeroed_bytes;
  int64_t workspace_bytes;  // of all that a call takes

  // The search by codes.
  int8_t* codes;  // [count, steps * kMmaBytes]
  CodedQuery* coded;
  int64_t sample_stride;  // in blocks
  int64_t sampled_blocks;
  uint64_t* sample_keys;  // [count, sampled blocks * kSampleGroups]
  int64_t capacity;       // of survivors, for each query; 0: no search by codes
  uint32_t* survivors;    // [count, capacity], rows
  uint64_t* keys;         // [count, capacity]

  // The search that scores all items.
  int32_t workers;        // blocks of threads, at least one a query
  int64_t worker_keys;    // that each has room for
  uint64_t* best_keys;    // [workers, worker_keys]
  int32_t* best_counts;   // [workers]
  uint64_t* merged_keys;  // [count, merged], for more than kMostSorted
  int64_t merged;         // a power of two
};

__host__ __device__ inline bool uses_codes(const TopKPass& pass) { return pass.capacity > 0; }

// Each puts its kernels on the stream.
void make_exclusion_tables(const TopKPass& pass, int64_t batch, cudaStream_t stream);
void prepare_queries(const TopKPass& pass, cudaStream_t stream);
void guess_thresholds(const TopKPass& pass, cudaStream_t stream);
void scan_sample(const TopKPass& pass, cudaStream_t stream);
void scan_codes(const TopKPass& pass, int round, cudaStream_t stream);
void answer_round(const TopKPass& pass, int round, cudaStream_t stream);
void score_all(const TopKPass& pass, cudaStream_t stream);

}  // namespace recengine::cuda
