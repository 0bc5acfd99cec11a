#!/usr/bin/env bash
# Runs the tests that are marked `cuda` on a machine without a GPU: builds the native module and the
# backend with their CUDA sources compiled for the CPU (tests/cuda_emulation). Without arguments for
# pytest also checks that the tests for compute-sanitizer run every kernel.
# usage: cuda_emulated.sh VENV [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
source tools/package.sh
source tools/kernel_tests.sh
build=build/cuda-emulated
package=$PWD/$build/package

# What the emulation must notice.
mkdir -p $build
"${CXX:-c++}" -x c++ -std=c++17 -O1 -Itests/cuda_emulation -Icsrc -DRECENGINE_CUDA_EMULATED \
  tests/cuda_emulation/emulation_test.cu -x none tests/cuda_emulation/*.cc -pthread -ldl \
  -o $build/emulation_test
$build/emulation_test

# Most objects are those of the ordinary build, once it is up to date.
cpu_build=$(find "$PWD/build" -maxdepth 1 -name "$("$venv/bin/python" -c \
  'import sys; print("cp%d%d-*" % sys.version_info[:2])')")
[[ -z $cpu_build ]] || "$venv/bin/ninja" -C "$cpu_build" --quiet
"$venv/bin/cmake" -S . -B $build -G Ninja -DCMAKE_MAKE_PROGRAM="$venv/bin/ninja" \
  -DCMAKE_BUILD_TYPE=Release -DRECENGINE_CUDA=EMULATED -DRECENGINE_WERROR=ON \
  -DRECENGINE_CPU_BUILD="$cpu_build" -DPython_EXECUTABLE="$venv/bin/python" \
  -DCMAKE_STRIP="$(command -v true)" >/dev/null
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
(($# > 1)) && exit

rm -f $build/kernels
CUDA_EMULATED_KERNELS=$PWD/$build/kernels "$python" "$venv/bin/pytest" -p no:cacheprovider "${kernel_tests[@]}"
nm -C $build/_native*.so | grep -F -f $build/kernels >$build/kernel_names
missing=0
while read -r kernel; do
  grep -qF "::$kernel(" $build/kernel_names && continue
  echo "cuda_emulated: no test of tools/kernel_tests.sh runs $kernel"
  missing=1
done < <(sed -n 's/^csrc[^ ]* \(.*\) sm_80:.*/\1/p' csrc/cuda/registers.txt)
exit $missing
