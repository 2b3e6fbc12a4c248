"""`commonweal adapter`: inspect, merge, compress and recompute adapters on disk."""
