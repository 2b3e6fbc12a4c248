"""From a deliberation's votes to opinion groups, to what holds across them and what divides, and to drafted clauses."""
