"""From (state, entry) to state: the rules that decide what an entry means.

Pure: no I/O, no clock.
"""
