"""What a person looks at: the page of a run or of several, TensorBoard's pictures,
replays into trackers."""
