"""Opening, merging and closing rounds, and counting motions."""
