#!/usr/bin/env bash
# On a machine with a GPU and torch: gpu_check.sh WHEELS OUT [options of gpu_check.py], in eight minutes.
# WHEELS is a folder of what torch does not bring, or - where everything is installed. To fill it, on any machine with
# a network: gpu_check.sh download WHEELS 3.12, the Python of the machine with the GPU. Nothing is compiled there.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "$1" = download ]; then
    pip download --quiet --dest "$2" --only-binary :all: --no-deps --python-version "$3" -r tools/dev/gpu_wheels.txt -c constraints.txt
    exit
fi
wheels=$1 out=$2
shift 2
mkdir -p "$out"
python=${PYTHON:-python3}
if [ "$wheels" != - ]; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$site" -r tools/dev/gpu_wheels.txt -c constraints.txt
    export PYTHONPATH="$PWD:$site"
else
    export PYTHONPATH="$PWD"
fi
"$python" tools/dev/gpu_check.py --out "$out" "$@" 2>&1 | tee "$out/output.txt"
