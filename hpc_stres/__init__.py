"""hpc_stres: spatiotemporal residual networks for video action recognition, trained and tested on Slurm clusters."""

from pathlib import Path

__version__ = "0.3.0"
# The folder that holds this package: a checkout, or an environment's site-packages.
SOURCES = Path(__file__).resolve().parent.parent
