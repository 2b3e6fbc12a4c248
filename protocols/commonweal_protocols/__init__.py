"""What is said in a consortium, and how it is proved. No torch, no numpy; gRPC only in ``wire``."""
