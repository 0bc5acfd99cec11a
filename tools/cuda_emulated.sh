#!/usr/bin/env bash
# Runs the tests that are marked `cuda` on a machine without a GPU: builds the native module and the
# backend with their CUDA sources compiled for the CPU (tests/cuda_emulation).
# usage: cuda_emulated.sh VENV [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
source tools/package.sh
build=build/cuda-emulated
package=$PWD/$build/package

# What the emulation must notice.
mkdir -p $build
"${CXX:-c++}" -x c++ -std=c++17 -O1 -Itests/cuda_emulation -Icsrc -DRECENGINE_CUDA_EMULATED \
  tests/cuda_emulation/emulation_test.cu -x none tests/cuda_emulation/*.cc -pthread -o $build/emulation_test
$build/emulation_test

"$venv/bin/cmake" -S . -B $build -G Ninja -DCMAKE_MAKE_PROGRAM="$venv/bin/ninja" \
  -DCMAKE_BUILD_TYPE=Release -DRECENGINE_CUDA=EMULATED -DRECENGINE_WERROR=ON \
  -DPython_EXECUTABLE="$venv/bin/python" >/dev/null
"$venv/bin/ninja" -C $build --quiet -j "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" _native triton_recengine

make_package "$venv" "$package" $build/_native*.so $build/libtriton_recengine.so
export PYTHONPATH=$package:$PWD:$site PYTHONDONTWRITEBYTECODE=1
# Servers see the emulated GPU, too.
export LD_PRELOAD=$PWD/$build/libcudart_emulated.so
export RECENGINE_BACKEND_DIRECTORY=$package/recengine/backends RECENGINE_VENV=$venv
(cd "$package" && "$python" -c 'from recengine import ops; print(*ops.cuda_devices())') | grep emulated
run() {
  "$python" "$venv/bin/pytest" -p no:cacheprovider "$@" \
    tests/ops tests/engine tests/serving tests/test_cuda.py tests/test_device.py \
    tests/test_capture.py tests/test_gpu_bench.py
}
run -m "cuda and not alone" -n 2 --dist loadfile "${@:2}"
run -m "cuda and alone" "${@:2}"
