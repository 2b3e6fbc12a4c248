"""Whole federations, in memory and as real processes."""
