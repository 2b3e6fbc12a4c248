"""The training loop, its objectives and checkpoints, and the processes that share a training."""
