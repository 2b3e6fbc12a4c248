"""Integer arithmetic whose result does not depend on order, thread count or machine."""
