"""What is said in a consortium, and how it is proved. Pure standard formats; no torch, no numpy, gRPC only in ``wire``."""
