#!/usr/bin/env bash
# Compiles every CUDA source for the architectures we support, warnings as errors. Runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nvcc >/dev/null; then
  echo "check_cuda: no nvcc on PATH; CUDA sources not compiled"
  exit 0
fi
for source in $(find csrc -name '*.cu'); do
  for arch in 80 90 100; do
    nvcc -std=c++17 -O2 -arch="sm_$arch" -Icsrc/include -Icsrc --Werror all-warnings \
      -Xcompiler -Wall,-Wextra,-Werror -c "$source" -o /dev/null
    echo "check_cuda: $source sm_$arch ok"
  done
done
