#!/usr/bin/env bash
# Make the environment: one virtual environment with pinned, tested versions and mmcv's operators
# compiled against the installed torch. Run through `make setup`; a second run does nothing.
#
#   PYTHON=python3.11     the interpreter to start from (3.10, 3.11 or 3.12)
#   TORCH=torch==2.13.0   what pip installs as torch: a version, a wheel file, several in quotes, with
#                         options of pip behind them; the torchvision for it comes from the same place
#   REQUIREMENTS=FILE     the package set (requirements.txt, requirements-openmmlab.txt)
#   VENV=.venv            where the environment goes
#   MAX_JOBS=N            compilers at once (default: one a core)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

VENV=${VENV:-.venv}
TORCH=${TORCH:-torch==2.13.0}
REQUIREMENTS=${REQUIREMENTS:-requirements.txt}
JOBS=${MAX_JOBS:-$(nproc)}
STAMP=$VENV/.setup-done
LOG=$VENV/setup.log

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }

[ -f "$REQUIREMENTS" ] || fail "REQUIREMENTS=$REQUIREMENTS: no such file"
wanted=$(cat "$REQUIREMENTS" requirements-build.txt pyproject.toml tools/support/setup.sh \
    <(printf '%s\n' "$TORCH" "$PWD" "${PYTHON:-}") | sha256sum | cut -d' ' -f1)
if [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

# --- what must be there before anything is downloaded ---------------------------------------
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || say "tested on Linux x86-64 only, this is $(uname -s) $(uname -m)"

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12"
else
    for PYTHON in python3 python3.11 python3.12 python3.10 ''; do
        [ -n "$PYTHON" ] || fail "no Python 3.10, 3.11 or 3.12 found: install one, or name it with PYTHON=/path/to/python3.11"
        if fits "$PYTHON"; then break; fi
    done
fi
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$PYTHON has no venv module: install it (Debian, Ubuntu: the python3-venv package)"
command -v "${CXX:-g++}" >/dev/null ||
    fail "no C++ compiler: install g++ (Debian, Ubuntu: the build-essential package)"
"$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    fail "$PYTHON has no C headers (Python.h): install them (Debian, Ubuntu: the python3-dev package)"

# --- the steps; pip itself skips what is already there --------------------------------------
started=$SECONDS
rm -f "$STAMP"
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
: >"$LOG"
python=$VENV/bin/python

run() {  # run COMMAND...: output to the log; on failure its end and where the rest is
    printf '\n+ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 && return
    explain "$*"
}

explain() {  # explain COMMAND: what the log says of its failure
    tail -n 400 "$LOG" | grep -E '(error|ERROR|FAILED|Error):|No space left' | tail -n 5 >&2 || true
    fail "'$1' failed; the whole output is in $LOG"
}
trap 'fail "interrupted; make setup begins again with the step it was at"' INT TERM

installed=$("$python" -m pip freeze 2>/dev/null || true)
mmcv=$(grep -oE '^(onedl-)?mmcv==[^ ;#]+' "$REQUIREMENTS")
# onedl-mmcv and mmcv have the same files: together in one environment they spoil each other
if grep -qE '^(onedl-)?mmcv==' <<<"$installed" && ! grep -q "^${mmcv%%==*}==" <<<"$installed"; then
    fail "$VENV holds the other package set: name another place, VENV=.venv-2, or remove it"
fi

say "1/4 torch ($TORCH)"
# shellcheck disable=SC2086  # TORCH may name several requirements
run "$python" -m pip install -r requirements-build.txt $TORCH
if [[ $TORCH != *torchvision* ]]; then
    # torch 2.13.0 has torchvision 0.28.0: the minor versions are 15 apart
    torchvision=$("$python" -c 'from importlib.metadata import version
_, minor, patch, *_ = version("torch").partition("+")[0].split(".")
print(f"torchvision==0.{int(minor) + 15}.{patch}")')
    options=
    [[ $TORCH == *--* ]] && options=--${TORCH#*--}
    # shellcheck disable=SC2086
    run "$python" -m pip install --no-deps "$torchvision" $options
fi

if grep -qx "$mmcv" <<<"$installed"; then
    say "2/4 $mmcv is there"
else
    say "2/4 $mmcv: its operators are compiled unless pip kept them from an earlier build"
    say "    the build takes about 20 core-minutes: some $((20 / JOBS + 1)) min with $JOBS compilers"
    # -g0: Python's own flags ask for debug symbols, which double the time. Appended last, it wins.
    {
        printf '\n+ pip install %s\n' "$mmcv"
        PYTHONUNBUFFERED=1 MAX_JOBS=$JOBS PATH="$PWD/$VENV/bin:$PATH" \
            CFLAGS="${CFLAGS:-} -g0" CXXFLAGS="${CXXFLAGS:-} -g0" \
            "$python" -m pip install -v --no-deps --no-build-isolation "$mmcv" 2>&1
    } | tee -a "$LOG" | bash tools/support/build_progress.sh ||
        explain "pip install $mmcv"
fi

say "3/4 mmdet, mmseg, mmpretrain and the rest of $REQUIREMENTS"
# opencv-python has the same files as the headless build, which goes when it does: first out, then in.
if "$python" -m pip show -q opencv-python 2>/dev/null; then
    run "$python" -m pip uninstall -y opencv-python opencv-python-headless
fi
run "$python" -m pip install --no-deps --no-build-isolation -r "$REQUIREMENTS"
run "$python" -m pip install --no-deps --no-build-isolation --editable .

if ! "$python" -c 'import torchvision' >>"$LOG" 2>&1; then
    run "$python" backbone/engine/torchvision_import.py
fi

say "4/4 checking that everything imports"
run "$python" -W ignore -c 'import mmdet.models, mmseg.models, backbone.engine, mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain.apis, pycocotools'

printf '%s\n' "$wanted" >"$STAMP"
say "done in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s: $VENV"
