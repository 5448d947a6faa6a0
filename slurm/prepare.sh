#!/usr/bin/env bash
# Prepare a config's store over several nodes with MPI:
#   CONFIG=configs/ucf101.yaml sbatch --nodes 4 --ntasks-per-node 16 slurm/prepare.sh
# Ranks find each other through `srun --mpi=pmix`; where a cluster has no pmix, SLURM_MPI_TYPE names another of those
# that `srun --mpi=list` shows: SLURM_MPI_TYPE=pmi2 CONFIG=configs/ucf101.yaml sbatch ...
# IMAGE=FILE.sif runs inside an apptainer image (BINDS=DIR,DIR: what it reads besides repository and run); further arguments go to `hpc-stres prepare`.
#SBATCH --job-name=stres-prepare
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
set -euo pipefail
: "${CONFIG:?set CONFIG to a config file, as in CONFIG=configs/ucf101.yaml sbatch slurm/prepare.sh}"
cd "${SLURM_SUBMIT_DIR:-.}"
# What srun --mpi takes; `srun --mpi=list` shows what this cluster has.
export SLURM_MPI_TYPE=${SLURM_MPI_TYPE:-pmix}
# shellcheck source=slurm/common.sh
source slurm/common.sh
run_ranks prepare --config "$CONFIG" "$@"
