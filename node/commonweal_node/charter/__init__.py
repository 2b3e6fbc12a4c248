"""A community's charter.

Its file, its objective weights, its data policy, and the deliberation that drafts it.
"""
