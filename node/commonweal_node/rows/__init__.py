"""Community examples: read, curated by the charter's data policy, and accounted for.

No report or manifest made here contains a word of their text.
"""
