#!/usr/bin/env bash
# Cross-compiles the kernel library for AArch64 and runs the kernels' samples on it under qemu-user. Needs a cross
# compiler and qemu-aarch64; PYTHON, CXX, QEMU, SYSROOT and BUILD_DIR may be set.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
build=${BUILD_DIR:-$(mktemp -d)}
compiler=${CXX:-aarch64-linux-gnu-g++}
qemu=${QEMU:-qemu-aarch64}

cmake -S "$root/runtime_ops/native" -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$build" --parallel 2 >/dev/null
"$compiler" -std=c++17 -O2 "$root/runtime_ops/native/check_samples.cc" -I "$root/runtime_ops/native" \
  -L "$build" -lruntime_ops -Wl,-rpath,"$build" -o "$build/check_samples"
(cd "$root/tests" && PYTHONPATH="$root:$root/tests" "$python" native_samples.py "$build/samples")
"$qemu" -L "${SYSROOT:-/usr/aarch64-linux-gnu}" "$build/check_samples" "$build/samples" scalar neon neondotprod
