#!/usr/bin/env bash
# Evaluate a run over all tasks of the job, from the repository root:
#   RUN_DIR=runs/ucf101 sbatch slurm/eval.sh
# IMAGE=FILE.sif runs inside an apptainer image (BINDS=DIR,DIR: what it reads besides repository and run); further arguments go to `hpc-stres evaluate`.
#SBATCH --job-name=stres-eval
#SBATCH --time=04:00:00
#SBATCH --open-mode=append
set -euo pipefail
: "${RUN_DIR:?set RUN_DIR to the run folder, as in RUN_DIR=runs/ucf101 sbatch slurm/eval.sh}"
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
run_ranks evaluate --run-dir "$RUN_DIR" "$@"
