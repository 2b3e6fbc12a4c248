"""The aggregation rules that a compact may name; each gives the same bytes everywhere."""
