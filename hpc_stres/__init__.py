"""Train and evaluate spatiotemporal residual networks for video action recognition on Slurm clusters."""

__version__ = "0.2.0"
