#!/usr/bin/env bash
# Builds the kernel library under sanitizers and runs the kernels' tests on it: addresses and undefined behaviour
# with every sample, then data races with those tests that use threads. PYTHON and BUILD_DIR may be set.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
build=${BUILD_DIR:-$(mktemp -d)}
compiler=${CXX:-c++}

build_with() {  # sanitizers
  cmake -S "$root/runtime_ops/native" -B "$build/$1" -DCMAKE_CXX_COMPILER="$compiler" -DGRAFT_SANITIZE="$1" >/dev/null
  cmake --build "$build/$1" --parallel 2 >/dev/null
}

test_with() {  # sanitizers, runtime libraries to load first, pytest arguments
  local libraries=""
  for name in $2; do libraries+="$("$compiler" -print-file-name="$name") "; done
  # Memory that Python never frees is not ours; threads of numpy's own library would only be noise.
  GRAFT_LIBRARY="$build/$1/libruntime_ops.so" LD_PRELOAD="$libraries" OPENBLAS_NUM_THREADS=1 \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
    "$python" -m pytest -q -n 2 -p no:cacheprovider "$root/tests/test_kernels.py" "$root/tests/test_feed_forward_kernels.py" \
    "$root/tests/test_combiner.py" "$root/tests/test_expanded.py" "${@:3}"
}

build_with address,undefined
test_with address,undefined "libasan.so libubsan.so libstdc++.so" -k "not environment and not gradients"
build_with thread
test_with thread "libtsan.so libstdc++.so" -k "threads"
