"""Claims about adapters/."""
