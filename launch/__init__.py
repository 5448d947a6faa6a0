"""Submitting phases as dependent jobs, on Slurm or on this machine, and watching them."""
