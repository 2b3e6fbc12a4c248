"""What every other folder stands on.

Errors, keys, canonical encoding, schemas, files and settings. It imports nothing of ours above it.
"""
