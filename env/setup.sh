#!/usr/bin/env bash
# The one place that installs: a virtual environment with the pinned packages, and, where this is root on Debian or
# Ubuntu, the system packages that are missing. A second call finds everything and returns at once. Its last line is the
# command that makes `hpc-stres` and `python` those of the environment.
#
#   env/setup.sh [--lint | --tests | --quiet]
#     --lint: also shellcheck; --tests: also what only the tests need (Slurm, an MPI library, a browser)
#     --quiet: without the last line
#   HPC_STRES_VENV=DIR         another place for the virtual environment (default: .venv in the repository)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${HPC_STRES_VENV:-$here/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
lock=$here/env/requirements.lock
want_tests=no want_shellcheck=no want_hint=no
case ${1:-} in
  --tests) want_tests=yes want_shellcheck=yes ;;
  --lint) want_shellcheck=yes ;;
  --quiet) ;;
  "") want_hint=yes ;;
  *) printf 'setup: %s: no such option\n' "$1" >&2; exit 2 ;;
esac

say() { printf 'setup: %s\n' "$*"; }

# Debian package, and the command or file that shows it is there.
system_packages() {
  command -v g++ >/dev/null || echo g++
  command -v git >/dev/null || echo git
  python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
  if [ "$want_shellcheck" = yes ]; then
    command -v shellcheck >/dev/null || echo shellcheck
  fi
  if [ "$want_tests" = yes ]; then
    command -v mpirun >/dev/null || echo openmpi-bin
    command -v slurmctld >/dev/null || echo slurm-wlm
    command -v slurmdbd >/dev/null || echo slurmdbd
    command -v munged >/dev/null || echo munge
    command -v mariadbd >/dev/null || echo mariadb-server
    # Slurm's PMIx plugin opens the library under the name that only the development package has.
    [ -n "$(find /usr/lib -path '*pmix2/lib/libpmix.so' -print -quit)" ] || echo libpmix-dev
    command -v chromedriver >/dev/null || echo chromium-driver
    command -v debootstrap >/dev/null || echo debootstrap
  fi
}

install_system_packages() {
  local missing
  mapfile -t missing < <(system_packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "not root on Debian: these system packages stay missing, and what needs them is skipped: ${missing[*]}"
    return 0
  fi
  say "installing system packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update >/dev/null || say "apt-get update failed; trying with the lists that are there"
  apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
    say "apt-get could not install ${missing[*]}; what needs them is skipped"
}

# The DALI build that matches torch's CUDA; a torch without CUDA takes the smaller one. Both run without a GPU.
dali_lock() {
  local cuda
  cuda=$("$venv/bin/python" -c 'import torch; print((torch.version.cuda or "12").split(".")[0])')
  printf '%s/env/dali-cuda%s.lock' "$here" "$cuda"
}

stamp_value() { cat "$lock" "$here"/env/dali-cuda*.lock "$here/pyproject.toml" | sha256sum | cut -d' ' -f1; }

# pip's chatter goes to a log; it is shown when pip fails.
pip_install() {
  local log=$venv/setup.log
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    say "pip failed; the whole log: $log" >&2
    exit 1
  }
}

install_python_packages() {
  local stamp=$venv/.hpc_stres-stamp
  if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(stamp_value) $here" ]; then
    return 0
  fi
  python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
    say "Python 3.11 to 3.13 is needed; this is $(python3 --version)" >&2
    exit 1
  }
  say "installing the pinned Python packages into $venv (some minutes, once)"
  python3 -m venv "$venv"
  pip_install -r "$lock"
  pip_install -r "$(dali_lock)"
  pip_install --no-deps --no-build-isolation -e "$here"
  printf '%s %s' "$(stamp_value)" "$here" >"$stamp"
}

# What to type next: short where the environment lies below the folder that this was called from.
activation() { printf 'source %q/bin/activate\n' "${venv#"$PWD"/}"; }

install_system_packages
install_python_packages
[ "$want_hint" = no ] || { say "ready; to find hpc-stres and python:"; activation; }
