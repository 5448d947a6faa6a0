#!/usr/bin/env bash
# All tests in three streams side by side: those of the private Slurm wait more than they work. The
# other streams' output comes after the first one's.
#   bash tests/run_all.sh PYTHON
set -uo pipefail
python=${1:-.venv/bin/python}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
"$python" -m pytest --durations=10 tests/slurm tests/image >"$logs/slurm" 2>&1 &
slurm=$!
"$python" -m pytest --durations=20 tests/unit >"$logs/unit" 2>&1 &
unit=$!
status=0
"$python" -m pytest --durations=10 tests/distributed || status=$?
wait "$slurm" || status=$?
cat "$logs/slurm"
wait "$unit" || status=$?
cat "$logs/unit"
exit "$status"
