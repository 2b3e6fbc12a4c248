"""Claims about coordinator/."""
