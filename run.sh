#!/usr/bin/env bash
# Sets up .venv where it is missing, then hands the verb to `fluidjax` in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=.venv
PYTHON=$VENV/bin/python
MARK=$VENV/.fluidjax-setup

usage() {
  cat <<'TEXT'
usage: ./run.sh VERB [ARGUMENTS]

  setup    make .venv and install fluidjax into it (CUDA or TPU wheels where such a device is seen)
  test     run the tests; further arguments are pytest's
  lint     check and format the code as CI does (ruff)

Every other verb is handed to the command `fluidjax`:

TEXT
  [ -x "$PYTHON" ] && "$PYTHON" -m fluidjax --help || echo "run ./run.sh setup to see them"
  echo
  echo "Environment: FLUIDJAX_EXTRA=cuda|tpu|none chooses the accelerator's wheels, FLUIDJAX_PYTHON the Python."
}

fail() { echo "run.sh: $*" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in ${FLUIDJAX_PYTHON:-python3 python3.12 python3.11 python3.13}; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' && { echo "$candidate"; return; }
  done
  [ -z "${FLUIDJAX_PYTHON:-}" ] || fail "FLUIDJAX_PYTHON is '$FLUIDJAX_PYTHON', which is no Python 3.11, 3.12 or 3.13"
  fail "fluidjax needs Python 3.11, 3.12 or 3.13 and found none; install python3, or name one in FLUIDJAX_PYTHON"
}

# After an upgrade of the system's Python, .venv names one without packages.
is_whole() { [ -x "$PYTHON" ] && "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("pip"))' 2>/dev/null; }

same_version() {
  local ask='import sys; print(sys.version_info[:2])'
  [ -z "${FLUIDJAX_PYTHON:-}" ] || [ "$("$PYTHON" -c "$ask")" = "$("$1" -c "$ask")" ]
}

make_venv() {
  local python=$1
  rm -rf "$VENV"
  "$python" -m venv "$VENV" >/dev/null 2>&1 && return
  # Debian and Ubuntu ship python3 without the part of venv that brings pip.
  rm -rf "$VENV"
  local sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo -n"
  if command -v apt-get >/dev/null 2>&1; then
    echo "python3 has no venv here: installing the package python3-venv"
    { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; } >/dev/null 2>&1 || true
    "$python" -m venv "$VENV" >/dev/null 2>&1 && return
  fi
  rm -rf "$VENV"
  fail "$python cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv) and run this again"
}

accelerator() {
  case ${FLUIDJAX_EXTRA:-} in
    cuda|tpu|none) echo "$FLUIDJAX_EXTRA"; return ;;
    ?*) fail "FLUIDJAX_EXTRA is '$FLUIDJAX_EXTRA': use cuda, tpu or none" ;;
  esac
  if compgen -G '/dev/accel[0-9]*' >/dev/null ||
    { compgen -G '/dev/vfio/[0-9]*' >/dev/null && [ -n "${TPU_NAME:-${TPU_ACCELERATOR_TYPE:-}}" ]; }; then echo tpu
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then echo cuda
  else echo none; fi
}

setup() {
  local extra wanted python
  extra=$(accelerator)
  wanted="$extra $(cksum setup.cfg pyproject.toml)${FLUIDJAX_PYTHON:+ $FLUIDJAX_PYTHON}"
  [ -f "$MARK" ] && [ "$(cat "$MARK")" = "$wanted" ] && is_whole && return
  python=$(find_python)
  { "$PYTHON" -c 'import pip' 2>/dev/null && same_version "$python"; } || make_venv "$python"
  echo "installing fluidjax and what it needs into $VENV (up to three minutes, some 2 GB)"
  local target=.
  [ "$extra" = none ] || target=".[$extra]"
  with_uv "$target" ||
    "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --editable "$target" ||
    fail "pip could not install fluidjax; its last lines above say why (no network? disk full?). Run ./run.sh setup again"
  echo "$wanted" >"$MARK"
}

# uv fetches packages side by side, in half of pip's time. It does not read pip's settings: it is
# given their constraints, and where they name another index, or uv fails, pip does it. (All that
# fluidjax needs is on PyPI, so additional indices do not matter.)
with_uv() {
  local settings constraint
  settings=$("$PYTHON" -m pip config list 2>/dev/null || true)
  ! grep -Eq "[.](index-url|no-index)=" <<<"$settings" || return 1
  constraint=$(sed -nE "s/^.*[.]constraint='([^ ]*)'$/\1/p" <<<"$settings" | tail -n 1)
  { "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check uv &&
    "$PYTHON" -m uv pip install --quiet --python "$PYTHON" \
      --compile-bytecode ${constraint:+--constraint "$constraint"} --editable "$1"; } >/dev/null 2>&1
}

lint() {
  local ruff
  ruff=$(grep -o 'ruff==[0-9.]*' setup.cfg)  # another version may format differently
  "$PYTHON" -m ruff --version 2>/dev/null | grep -qx "ruff ${ruff#ruff==}" ||
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$ruff"
  "$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check .
}

verb=${1:-help}
[ $# -gt 0 ] && shift
case $verb in
  setup) setup; echo "ready: $("$PYTHON" -c 'import jax; print("JAX", jax.__version__, "on", jax.devices())' 2>/dev/null)" ;;
  test) setup; exec "$PYTHON" -m pytest "$@" ;;
  lint) setup; lint ;;
  help|-h|--help) usage ;;
  *) setup; exec "$PYTHON" -m fluidjax "$verb" "$@" ;;
esac
