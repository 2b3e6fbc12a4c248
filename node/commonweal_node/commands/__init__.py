"""`commonweal node`, `charter`, `motion` and `vote`: argument parsing and printing."""
