#!/usr/bin/env bash
# One door to fluidjax. Every verb sets up what is missing and can be repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=.venv
PYTHON=$VENV/bin/python
MARK=$VENV/.fluidjax-setup
DEMO_DIR=${FLUIDJAX_DEMO_DIR:-runs/demo}

usage() {
  cat <<'TEXT'
usage: ./run.sh VERB [ARGUMENTS]

  setup                 make .venv and install fluidjax into it (CUDA or TPU wheels where such a device is seen)
  demo [--seed N]       train and evaluate the whole method on the embedded cohort; 7 to 10 minutes on 2 cores
  test [PYTEST ARGS]    run the tests
  train ARGS            python -m fluidjax.main    e.g. --config=configs/ldm.py:demo --workdir=runs/mine
  eval ARGS             python -m fluidjax.eval    e.g. --workdir=runs/mine
  predict ARGS          python -m fluidjax.predict e.g. SCAN.nii.gz --workdir=runs/mine --out=runs/mine/predictions
  prepare ARGS          python -m fluidjax.prepare preprocess a folder of scans once, in parallel, e.g. SCANS --out=store
  export ARGS           python -m fluidjax.export  one file of a run to hand on, e.g. runs/mine --out=model.zip
  randomize ARGS        python -m fluidjax.randomize  paint pseudo-pathology into scans, e.g. SCAN.nii.gz --out=pairs
  convert ARGS          python -m fluidjax.convert make a run of published PyTorch weights, e.g. AE.ckpt UNET.ckpt --out=runs/published
  bench ARGS            python -m fluidjax.bench   time the training step of a configuration, or (fluid) the flow
  benchmark ARGS        python -m fluidjax.benchmark  train and score all methods alike, e.g. --scale=demo --seeds=0,1,2
  sweep ARGS            python -m fluidjax.sweep   train and evaluate many configurations, here, on TPU VMs or a cluster
  help                  this text

Environment: FLUIDJAX_EXTRA=cuda|tpu|none chooses the accelerator's wheels; FLUIDJAX_DEMO_DIR the demo's folder.
TEXT
}

fail() { echo "run.sh: $*" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in "${FLUIDJAX_PYTHON:-}" python3 python3.12 python3.11 python3.13; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' && { echo "$candidate"; return; }
  done
  fail "fluidjax needs Python 3.11, 3.12 or 3.13 and found none; install python3, or name one in FLUIDJAX_PYTHON"
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
  wanted="$extra $(cksum setup.cfg pyproject.toml)"
  [ -x "$PYTHON" ] && [ -f "$MARK" ] && [ "$(cat "$MARK")" = "$wanted" ] && return
  python=$(find_python)
  "$PYTHON" -c 'import pip' 2>/dev/null || make_venv "$python"
  echo "installing fluidjax and what it needs into $VENV (one to three minutes, some 2 GB)"
  local target=.
  [ "$extra" = none ] || target=".[$extra]"
  "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --editable "$target" ||
    fail "pip could not install fluidjax; its last lines above say why (no network? disk full?). Run ./run.sh setup again"
  echo "$wanted" >"$MARK"
}

demo() {
  local seed=0
  while [ $# -gt 0 ]; do
    case $1 in
      --seed) [ $# -ge 2 ] || fail "demo: --seed wants a number"; seed=$2; shift 2 ;;
      --seed=*) seed=${1#--seed=}; shift ;;
      *) fail "demo knows --seed N alone, not '$1'" ;;
    esac
  done
  case $seed in ''|*[!0-9]*) fail "demo: --seed wants a number, not '$seed'" ;; esac
  local workdir=$DEMO_DIR
  [ "$seed" = 0 ] || workdir=$DEMO_DIR-seed$seed
  "$PYTHON" -m fluidjax.main --config=configs/ldm.py:demo --config.seed="$seed" --workdir="$workdir"
  "$PYTHON" -m fluidjax.eval --workdir="$workdir"
}

verb=${1:-help}
[ $# -gt 0 ] && shift
case $verb in
  setup) setup; echo "ready: $("$PYTHON" -c 'import jax; print("JAX", jax.__version__, "on", jax.devices())' 2>/dev/null)" ;;
  demo) setup; demo "$@" ;;
  test) setup; exec "$PYTHON" -m pytest "$@" ;;
  train) setup; exec "$PYTHON" -m fluidjax.main "$@" ;;
  eval|predict|prepare|export|randomize|convert|bench|benchmark|sweep) setup; exec "$PYTHON" -m "fluidjax.$verb" "$@" ;;
  help|-h|--help) usage ;;
  *) usage >&2; fail "no verb '$verb'" ;;
esac
