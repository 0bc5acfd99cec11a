#!/usr/bin/env bash
# On a GPU host: builds the CUDA parts for its GPU, runs the tests marked `cuda` on it, those marked
# `tensorrt` where that is installed, every kernel under compute-sanitizer, and profiles calls with
# ncu; says why tests were skipped. Needs nvcc, and no network.
# usage: gpu_checks.sh VENV [FOLDER FOR gpu-checks-<GPU>.txt]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
out=${2:-bench/results}
python=$venv/bin/python
source tools/kernel_tests.sh
export PATH=$PATH:/usr/local/cuda/bin
command -v nvcc >/dev/null || { echo "gpu_checks: no nvcc on PATH"; exit 1; }

# CMake knows `native` from 3.24 on, and not that Hopper's wgmma wants 90a.
arch=native
if command -v nvidia-smi >/dev/null; then
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | tr -d . |
    sed 's/^90$/90a/' | paste -sd ';')
fi
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$python" -m pip --disable-pip-version-check install -q \
  --no-build-isolation --no-deps --no-index -e . -C cmake.define.RECENGINE_CUDA=ON \
  -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$arch" -C cmake.define.RECENGINE_WERROR=ON

gpu=$("$python" -c 'from bench.gpu.machine import file_name; from recengine.gpu import current_gpu
print(file_name(current_gpu()))')
mkdir -p "$out"
exec > >(tee "$out/gpu-checks-$gpu.txt") 2>&1
echo "== built for $arch with $(nvcc --version | tail -1)"
"$python" -c 'from recengine import ops
devices = ops.cuda_devices()
print(*devices or ["gpu_checks: the build finds no GPU"], sep="\n")
raise SystemExit(not devices)'

failed=0
# check TITLE COMMAND...: a check that fails does not keep the others from running.
check() {
  echo "== $1"
  "${@:2}" || { echo "gpu_checks: $1 failed"; failed=1; }
}
check "tests" "$python" -m pytest tests -m cuda -rs

if "$python" -c 'import tensorrt' 2>/dev/null; then
  check "plans" "$python" -m pytest tests -m tensorrt -rs  # a server of plans: in the container alone
else
  echo "gpu_checks: no tensorrt in the environment; its tests did not run"
fi

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    options=(--tool $tool --error-exitcode 1)
    # Tests ask for devices that are not there.
    [[ $tool == memcheck ]] && options+=(--report-api-errors no)
    check "compute-sanitizer $tool" compute-sanitizer "${options[@]}" \
      "$python" -m pytest "${kernel_tests[@]}"
  done
else
  echo "gpu_checks: no compute-sanitizer on PATH"
fi

if command -v ncu >/dev/null; then
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  metrics+=,dram__throughput.avg.pct_of_peak_sustained_elapsed,lts__t_sector_hit_rate.pct
  metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
  for op in embedding_bag cosine_topk cosine_topk_1024; do
    echo "== ncu $op"
    ncu --profile-from-start off --clock-control none --metrics $metrics \
      "$python" -m bench.gpu.one_call $op ||
      echo "gpu_checks: ncu failed; may this user read the GPU's counters?"
  done
else
  echo "gpu_checks: no ncu on PATH"
fi
exit $failed
