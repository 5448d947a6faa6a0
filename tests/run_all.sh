#!/usr/bin/env bash
# All tests in two streams side by side: those of the private Slurm and the unit tests wait more than they work. The
# second stream's output comes after the first one's.
#   bash tests/run_all.sh PYTHON
set -uo pipefail
python=${1:-.venv/bin/python}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$python" -m pytest --durations=20 tests/slurm tests/image tests/unit >"$log" 2>&1 &
second=$!
status=0
"$python" -m pytest --durations=10 tests/distributed || status=$?
wait "$second" || status=$?
cat "$log"
exit "$status"
