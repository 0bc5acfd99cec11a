#!/usr/bin/env bash
# Builds the C++ core with AddressSanitizer and UndefinedBehaviorSanitizer and runs its tests on it:
# the ops and the engine through the native module, the backend inside a real tritonserver.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
build=build/sanitize
"$venv/bin/cmake" -S . -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$venv/bin/ninja" \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DRECENGINE_SANITIZE=ON -DRECENGINE_WERROR=ON \
  -DPython_EXECUTABLE="$venv/bin/python" >/dev/null
"$venv/bin/ninja" -C "$build"
