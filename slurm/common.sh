# shellcheck shell=bash
# What the job scripts share: one rank a task, with or without an image, in the environment that env/setup.sh made.

# find_python: sets PYTHON, the words that start Python in a task.
find_python() {
  local python=${HPC_STRES_VENV:-$PWD/.venv}/bin/python
  PYTHON=("$python")
  if [ -n "${IMAGE:-}" ]; then
    [ -f "$IMAGE" ] || { echo "IMAGE=$IMAGE: no such image" >&2; exit 2; }
    local -a binds=(--bind "$PWD")
    [ -z "${RUN_DIR:-}" ] || binds+=(--bind "$(realpath -m "$RUN_DIR")")
    [ -z "${BINDS:-}" ] || binds+=(--bind "$BINDS")
    PYTHON=("${IMAGE_WITH:-apptainer}" exec --nv "${binds[@]}" "$IMAGE" python3)
  elif [ ! -x "$python" ]; then
    echo "$python is not there: run env/setup.sh on the login node first, or set IMAGE" >&2
    exit 2
  fi
}

# run_ranks COMMAND ARGUMENTS...: hpc-stres on every task of the job, or on this machine where there is no job.
run_ranks() {
  find_python
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    # srun does not take the cores of a task over from sbatch on every version; said again, it works on all.
    srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
      "${PYTHON[@]}" -m hpc_stres "$@"
  else
    "${PYTHON[@]}" -m hpc_stres "$@"
  fi
}

# run_mpi COMMAND ARGUMENTS...: the same, as one MPI world.
run_mpi() {
  find_python
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    # shellcheck source=hpc_stres/launch/mpi.sh
    source hpc_stres/launch/mpi.sh
    mpi_ranks -m hpc_stres "$@"
  else
    "${PYTHON[@]}" -m hpc_stres "$@"
  fi
}
