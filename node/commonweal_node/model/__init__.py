"""The base model with an adapter on it: loading, tokens, losses and held-out evaluation.

The lowest folder that imports torch.
"""
