#!/usr/bin/env bash
# Prepare a config's store over several nodes with MPI:
#   CONFIG=configs/ucf101.yaml sbatch --nodes 4 --ntasks-per-node 16 slurm/prepare.sh
# How ranks find each other is tried out: what `srun --mpi=list` offers, then mpirun. SLURM_MPI_TYPE=pmi2 settles it
# without trying. Where neither works, one task prepares with all cores of its node.
# IMAGE=FILE.sif runs inside an apptainer image (BINDS=DIR,DIR: what it reads besides repository and run); further arguments go to `hpc-stres prepare`.
#SBATCH --job-name=stres-prepare
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
set -euo pipefail
: "${CONFIG:?set CONFIG to a config file, as in CONFIG=configs/ucf101.yaml sbatch slurm/prepare.sh}"
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
run_mpi prepare --config "$CONFIG" "$@"
