"""Phases as dependent jobs: on Slurm, on this machine, their status."""
