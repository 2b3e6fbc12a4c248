"""From a deliberation's votes to opinion groups, to what holds across them, and to drafted clauses."""
