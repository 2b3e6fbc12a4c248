"""Checking a whole log again, down to the bytes of every merge, and reporting the result."""
