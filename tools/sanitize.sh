#!/usr/bin/env bash
# Builds the C++ core with AddressSanitizer and UndefinedBehaviorSanitizer and runs its tests on it:
# ops and engine through the native module, the backend inside a real tritonserver; kernels run on an
# emulated GPU. What is changed while it is read runs with ThreadSanitizer.
# usage: sanitize.sh VENV [--build], which only builds
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
source tools/package.sh
build=build/sanitize
package=$PWD/$build/package

# build_with SANITIZERS DIRECTORY TARGET...
build_with() {
  local jobs="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
  "$venv/bin/cmake" -S . -B "$2" -G Ninja -DCMAKE_MAKE_PROGRAM="$venv/bin/ninja" \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DRECENGINE_SANITIZE="$1" -DRECENGINE_WERROR=ON \
    -DRECENGINE_CUDA=EMULATED \
    -DPython_EXECUTABLE="$venv/bin/python" >/dev/null
  "$venv/bin/ninja" -C "$2" --quiet -j "$jobs" "${@:3}"
}

build_with thread $build-thread live_item_index_stress
build_with address,undefined $build _native triton_recengine
[[ ${2:-} == --build ]] && exit

TSAN_OPTIONS=halt_on_error=1 $build-thread/live_item_index_stress

make_package "$venv" "$package" $build/_native*.so $build/libtriton_recengine.so
export PYTHONPATH=$package:$PWD:$site PYTHONDONTWRITEBYTECODE=1
# Leaks are not looked for: the interpreter and OpenVINO keep what they allocate until the end. Of an
# allocation's thirty callers two are kept, for a report: all of them took most of OpenVINO's time.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0
ASAN_OPTIONS+=:malloc_context_size=2
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# OpenVINO's TBB opens a library with RTLD_DEEPBIND otherwise, at which AddressSanitizer gives up.
export TBB_ENABLE_SANITIZERS=1
runtimes=
for library in libasan.so libubsan.so libstdc++.so.6; do
  runtimes+=" $("${CXX:-c++}" -print-file-name=$library)"
done
# The backend would find CUDA's own runtime in the server, which has loaded it.
runtimes+=" $PWD/$build/libcudart_emulated.so"
# Not what needs gigabytes, nor what counts memory, which sanitizers take, too.
LD_PRELOAD=$runtimes "$python" "$venv/bin/pytest" -q -p no:cacheprovider -n 2 --hypothesis-profile=few \
  -m "not alone" --deselect tests/engine/test_resident.py::test_engines_share_a_copy \
  tests/ops tests/engine tests/test_device.py tests/test_capture.py

# The backend: malformed requests to a real server that loads the sanitised library. The tests run on
# the ordinary build; a wrapper first on PATH preloads the runtimes into the server alone.
mkdir -p $build/bin
# At its exit the server's libp11-kit frees a locale, and with preloaded runtimes that never returns.
echo 'void freelocale(void* locale) { (void)locale; }' |
  "${CXX:-c++}" -x c -shared -fPIC - -o $build/keep_locales.so
cat > $build/bin/tritonserver <<EOF
#!/bin/sh
export LD_PRELOAD="$runtimes $PWD/$build/keep_locales.so"
export ASAN_OPTIONS=$ASAN_OPTIONS:quarantine_size_mb=4
exec "$site/pytriton/tritonserver/bin/tritonserver" "\$@"
EOF
chmod +x $build/bin/tritonserver
PYTHONPATH= PATH=$PWD/$build/bin:$PATH RECENGINE_BACKEND_DIRECTORY=$package/recengine/backends \
  "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/serving/test_bad_requests.py tests/serving/test_stage_models.py
