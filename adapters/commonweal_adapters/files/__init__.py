"""Adapter files.

safetensors, PEFT folders, the fixed-point grid, and compressed deltas.
"""
