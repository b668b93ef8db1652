#!/usr/bin/env bash
# Make a virtual environment with the tested releases and this package in editable mode: setup_venv.sh FOLDER
# CONSTRAINTS names another file of releases than constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
constraints=${CONSTRAINTS:-constraints.txt}

usable() { "$1" -c 'import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

python=
for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3.14 python3.10 python3 python}; do
    if usable "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "error: Python 3.10 to 3.14 with its venv module is needed (Debian: apt install python3 python3-venv);" \
         "name one with make setup PYTHON=/path/to/python3" >&2
    exit 2
fi

echo "Setting up $venv with $("$python" --version) (downloads about 3 GB the first time)"
[ -x "$venv/bin/python" ] && usable "$venv/bin/python" || "$python" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --constraint "$constraints" setuptools wheel
pip install --quiet --constraint "$constraints" --editable '.[lite,peers,runtimes,dev]'

# OpenCV's default build needs libGL, which servers and containers lack; the headless build has the same Python files.
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
    release=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("opencv-python"))')
    pip uninstall --quiet --yes opencv-python
    pip install --quiet --no-deps --force-reinstall "opencv-python-headless==$release"
fi
"$venv/bin/python" -c '
import shvit_det
from shvit_det.kernels import loading
try:
    found = f"kernels for {loading.find_kernels().instruction_set}"
except loading.CannotLoadError as error:
    found = f"no kernels for this processor: {error}"
print(f"shvit_det {shvit_det.__version__} is ready ({found})")'
