"""What a node holds and speaks to: its keys, its status, the coordinator, its witness."""
