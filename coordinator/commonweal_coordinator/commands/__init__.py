"""`commonweal coordinator`: argument parsing and printing."""
