"""Hand-crafted features: improved dense trajectories, Fisher vectors, linear
classifiers. No torch."""
