#!/usr/bin/env bash
# Run the tests on the oldest torch that setup.cfg allows and on the newest that pip finds: versions.sh [FOLDER [NAME]]
# NAME is oldest or newest; without it, both run. Each gets an environment of about 6 GB in FOLDER (build/versions) and a line at the end. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=$(mkdir -p "${1:-build/versions}" && cd "${1:-build/versions}" && pwd)

try() {  # try NAME 'TORCH REQUIREMENT' 'TORCHVISION REQUIREMENT'
    local venv=$folder/$1 log=$folder/$1.log
    mkdir -p "$venv"
    { grep -v '^torch' constraints.txt; printf '%s\n' "$2" "$3"; } > "$folder/$1.txt"
    if CONSTRAINTS=$folder/$1.txt bash tools/setup_venv.sh "$venv" > "$log" 2>&1; then
        "$venv/bin/python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder >> "$log" 2>&1
    fi
    local versions
    versions=$("$venv/bin/python" -c 'import platform, torch, torchvision
print(f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}")' 2>&1 | tail -n 1)
    summary+=("| $1 | $versions | $(tail -n 1 "$log") |")
}

summary=()
[ "${2:-oldest}" != oldest ] || try oldest 'torch==2.6.0' 'torchvision==0.21.0'
[ "${2:-newest}" != newest ] || try newest 'torch>=2.6' 'torchvision>=0.21'
printf '%s\n' "${summary[@]}"
