# Sourced by the scripts that run every kernel: which tests reach them all, few enough for
# compute-sanitizer, as arguments of pytest. cuda_emulated.sh holds them against
# csrc/cuda/registers.txt.
kernel_tests=(
  tests/ops tests/engine -m "cuda and not alone" --hypothesis-profile=few -o timeout=0 -k
  "row_cache or vocabulary or test_order \
   or embedding_bag_cuda and several_warps and fp16 \
   or cosine_topk_cuda and (batches_of_every_size or list_that_overflows or leave_open \
                            or excluded_items or may_be_little and 0.02) \
   or cosine_topk and the_threads and 30011 \
   or stages_around_the_graphs"
)
