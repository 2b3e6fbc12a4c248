"""Claims about protocols/."""
