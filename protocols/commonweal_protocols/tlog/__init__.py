"""The transparency log's formats.

Exactly as RFC 6962 and the C2SP specifications state them; nothing in here is our own format.
"""
