#!/usr/bin/env bash
# Compiles every CUDA source for the architectures we support, warnings and register spills as
# errors, and prints what each kernel uses. Runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nvcc >/dev/null; then
  echo "check_cuda: no nvcc on PATH; CUDA sources not compiled"
  exit 0
fi

# Of ptxas -v: the kernel's name, its registers, its static shared memory and its stack.
summary='
/Compiling entry function/ { gsub(/\x27/, ""); name = $7 }
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
  local source=$1 arch=$2 log
  if ! log=$(nvcc -std=c++17 -O3 -arch="sm_$arch" -Icsrc/include -Icsrc --Werror all-warnings \
    -Xcompiler -Wall,-Wextra,-Werror -Xptxas -v,--warn-on-spills \
    -c "$source" -o /dev/null 2>&1); then
    echo "$log"
    return 1
  fi
  # One write, so that two compilations do not mix their lines.
  echo "check_cuda: $source sm_$arch ok$(awk "$summary" <<<"$log" | c++filt -p | sed 's/^  .*(anonymous namespace)::/  /')"
}
export -f compile
export summary

for source in $(find csrc -name '*.cu' | sort); do
  for arch in 80 90 100; do echo "$source $arch"; done
done | xargs -P 2 -L 1 bash -c 'compile "$@"' compile
