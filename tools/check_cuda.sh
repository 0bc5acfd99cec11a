#!/usr/bin/env bash
# Compiles every CUDA source for the architectures we support, warnings, register spills and
# serialized wgmmas as errors, and prints what each kernel uses. Runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nvcc >/dev/null; then
  echo "check_cuda: no nvcc on PATH; CUDA sources not compiled"
  exit 0
fi

# Of ptxas -v: the kernel's name, its registers, its static shared memory and its stack.
summary='
/Compiling entry function/ { gsub(/\x27/, ""); name = $7 " " $9 }
/bytes stack frame/ { stack = $1 }
/Used [0-9]+ registers/ {
  shared = 0
  for (i = 1; i <= NF; ++i) {
    if ($i == "registers,") registers = $(i - 1)
    if ($i ~ /^smem/) shared = $(i - 2)
  }
  printf "\n  %s %d registers, %d bytes shared, %d bytes stack", name, registers, shared, stack
}'

compile() {
  local source=$1 log arch targets=()
  for arch in 80 90a 100; do targets+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
  if ! log=$(nvcc -std=c++17 -O3 "${targets[@]}" -Icsrc/include -Icsrc --Werror all-warnings \
    -Xcompiler -Wall,-Wextra,-Werror -Xptxas -v,--warn-on-spills \
    -c "$source" -o /dev/null 2>&1); then
    echo "$log"
    return 1
  fi
  # ptxas only informs of this: each wgmma would wait for the one before.
  if grep "wgmma.mma_async instructions are serialized" <<<"$log"; then return 1; fi
  # One write, so that two compilations do not mix their lines.
  echo "check_cuda: $source ok$(awk "$summary" <<<"$log" | c++filt -p | sed 's/^  .*(anonymous namespace)::/  /')"
}
export -f compile
export summary

find csrc -name '*.cu' | sort | xargs -P "$(nproc)" -L 1 bash -c 'compile "$1"' compile
