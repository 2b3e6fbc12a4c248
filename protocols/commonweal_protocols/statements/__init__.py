"""The kinds of statement that may be logged, and the envelope that signs them.

Pure: no I/O, no clock.
"""
