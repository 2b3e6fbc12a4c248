"""What a launcher (``accelerate launch``, ``torchrun``) has told this process of its place; no torch."""

import os


def launched_size() -> int:
    """Return how many processes were started to train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Return which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))
