#!/usr/bin/env bash
# Train one phase by hand; `python launch/submit.py` does this for all phases, with dependencies:
#   RUN_DIR=runs/try PHASE=motion CONFIG=configs/ucf101.yaml sbatch --nodes 2 --gpus-per-node 4 \
#     --ntasks-per-node 4 slurm/train.sh
# IMAGE=FILE.sif runs inside an apptainer image (BINDS=DIR,DIR: what it reads besides repository and run); further arguments go to `hpc-stres train`.
#SBATCH --job-name=stres-train
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --signal=USR2@120
set -euo pipefail
: "${RUN_DIR:?set RUN_DIR to the run folder}" "${PHASE:?set PHASE to a phase of the recipe}"
: "${CONFIG:?set CONFIG to a config file}"
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
run_ranks train --config "$CONFIG" --phase "$PHASE" --run-dir "$RUN_DIR" "$@"
