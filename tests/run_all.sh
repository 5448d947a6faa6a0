#!/usr/bin/env bash
# All tests in three streams side by side: those of the private Slurm wait more than they work. The
# other streams' output comes after the first one's.
#   bash tests/run_all.sh PYTHON
#
# A test that fails is tried once more, and named as RERUN with its first traceback: two cores are
# shared by several ranks, a scheduler and kills, and a race of a test is no verdict on the product.
# What fails twice fails; what is named as RERUN is to be looked at.
set -uo pipefail
python=${1:-.venv/bin/python}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
again=(--reruns 1 --rerun-show-tracebacks -rRfEs)
"$python" -m pytest --durations=10 "${again[@]}" tests/slurm tests/image >"$logs/slurm" 2>&1 &
slurm=$!
"$python" -m pytest --durations=20 "${again[@]}" tests/unit >"$logs/unit" 2>&1 &
unit=$!
status=0
"$python" -m pytest --durations=10 "${again[@]}" tests/distributed || status=$?
wait "$slurm" || status=$?
cat "$logs/slurm"
wait "$unit" || status=$?
cat "$logs/unit"
exit "$status"
