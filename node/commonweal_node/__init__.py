"""The institution's side: data, training, evaluation, adoption, and the daemon. Community data never leaves it."""
