# shellcheck shell=bash
# What the job scripts share: one rank a task, with or without an image, in the environment that env/setup.sh made.

# run_ranks COMMAND ARGUMENTS...: hpc-stres on every task of the job, or on this machine where there is no job.
run_ranks() {
  local python=${HPC_STRES_VENV:-$PWD/.venv}/bin/python
  local -a command=("$python" -m hpc_stres "$@")
  if [ -n "${IMAGE:-}" ]; then
    [ -f "$IMAGE" ] || { echo "IMAGE=$IMAGE: no such image" >&2; exit 2; }
    local -a binds=(--bind "$PWD")
    [ -z "${RUN_DIR:-}" ] || binds+=(--bind "$(realpath -m "$RUN_DIR")")
    [ -z "${BINDS:-}" ] || binds+=(--bind "$BINDS")
    command=(apptainer exec --nv "${binds[@]}" "$IMAGE" python3 -m hpc_stres "$@")
  elif [ ! -x "$python" ]; then
    echo "$python is not there: run env/setup.sh on the login node first, or set IMAGE" >&2
    exit 2
  fi
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    # srun does not take the cores of a task over from sbatch on every version; said again, it works on all.
    srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${command[@]}"
  else
    "${command[@]}"
  fi
}
