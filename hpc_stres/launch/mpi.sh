# shellcheck shell=bash
# mpi_ranks ARGUMENTS...: "${PYTHON[@]}" ARGUMENTS on every task of the job, as one MPI world. SRUN_ARGS holds further
# arguments of srun; one that names a kind of MPI is believed.
#
# Which launcher can do that depends on how the site's Slurm and the MPI under mpi4py were built, and nothing says so
# but trying: each kind that `srun --mpi=list` offers starts a first world that only counts its ranks, then mpirun does.
# SLURM_MPI_TYPE, where it is set, is believed.

mpi_probe='import os, sys; from mpi4py import MPI; sys.exit(MPI.COMM_WORLD.size != int(os.environ["HPC_STRES_RANKS"]))'

# mpi_counts LAUNCHER...: whether a launcher starts all ranks as one world.
mpi_counts() {
  HPC_STRES_RANKS=$SLURM_NTASKS timeout -k 5 "${HPC_STRES_PROBE_SECONDS:-120}" \
    "$@" "${PYTHON[@]}" -c "$mpi_probe" >/dev/null 2>&1 </dev/null
}

mpi_ranks() {
  local -a srun=(srun --unbuffered --kill-on-bad-exit=1 --export=ALL) tried=()
  # srun does not take the cores of a task over from sbatch on every version; said again, it works on all.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || srun+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  srun+=(${SRUN_ARGS[@]+"${SRUN_ARGS[@]}"})
  if [ "${SLURM_NTASKS:-1}" = 1 ] || [[ " ${srun[*]}" == *" --mpi="* ]]; then
    "${srun[@]}" "${PYTHON[@]}" "$@"
    return
  fi
  if [ -n "${SLURM_MPI_TYPE:-}" ]; then
    "${srun[@]}" --mpi="$SLURM_MPI_TYPE" "${PYTHON[@]}" "$@"
    return
  fi
  local offered kind
  # A list of words, with or without commas, on stdout or on stderr: it depends on the version.
  offered=" $(srun --mpi=list 2>&1 | tr -cs 'a-z0-9_' ' ') "
  for kind in pmix pmi2 cray_shasta; do
    [[ $offered == *" $kind "* ]] || continue
    if mpi_counts "${srun[@]}" --mpi="$kind"; then
      echo "ranks find each other through srun --mpi=$kind"
      "${srun[@]}" --mpi="$kind" "${PYTHON[@]}" "$@"
      return
    fi
    tried+=("srun --mpi=$kind,")
  done
  # mpirun starts its ranks beside an image that srun runs, not in it.
  if [[ " ${srun[*]}" != *" --container-image="* ]] && command -v mpirun >/dev/null; then
    # Open MPI refuses to run as root unless it is told so twice; it cannot know that this is a container.
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    if mpi_counts mpirun -n "$SLURM_NTASKS"; then
      echo "ranks find each other through mpirun"
      mpirun -n "$SLURM_NTASKS" "${PYTHON[@]}" "$@"
      return
    fi
    tried+=("mpirun,")
  fi
  echo "hpc-stres prepare: $SLURM_NTASKS tasks do not become one MPI world here; tried: ${tried[*]:-nothing, for} srun --mpi=list says:${offered}
Load the MPI module that mpi4py was built with, or name a kind of srun's: SLURM_MPI_TYPE=pmi2 sbatch ...
Or do without MPI: one node and one task prepare with all its cores (sbatch --nodes 1 --ntasks 1 --cpus-per-task 16)." >&2
  return 2
}
