"""Training of the networks: the training steps, the loop, and the files of a run."""
