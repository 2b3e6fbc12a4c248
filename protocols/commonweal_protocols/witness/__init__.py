"""Cosigning checkpoints after checking consistency.

The state machine, its store, its server and its client.
"""
