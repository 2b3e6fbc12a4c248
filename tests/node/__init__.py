"""Claims about node/."""
