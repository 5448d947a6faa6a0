"""Training a phase: engines, the loop, checkpoints, signals, metrics."""
