"""Drafting compacts and forks, collecting signatures, and succeeding another coordinator."""
