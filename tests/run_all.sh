#!/usr/bin/env bash
# All tests in three streams side by side: those of the private Slurm wait more than they work. The
# other streams' output comes after the first one's.
#   bash tests/run_all.sh PYTHON
#
# A test of several processes or of a scheduler that fails is tried once more, and named as RERUN in
# the summary: on a busy machine another process may have taken its port or its turn. Tests of the
# unit stream are tried once.
set -uo pipefail
python=${1:-.venv/bin/python}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
again=(--reruns 1 --rerun-show-tracebacks -rRfEs)
"$python" -m pytest --durations=10 "${again[@]}" tests/slurm tests/image >"$logs/slurm" 2>&1 &
slurm=$!
"$python" -m pytest --durations=20 tests/unit >"$logs/unit" 2>&1 &
unit=$!
status=0
"$python" -m pytest --durations=10 "${again[@]}" tests/distributed || status=$?
wait "$slurm" || status=$?
cat "$logs/slurm"
wait "$unit" || status=$?
cat "$logs/unit"
exit "$status"
