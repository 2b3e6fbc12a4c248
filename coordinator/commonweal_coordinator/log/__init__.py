"""The sequencer and its storage.

Entries become durable, integrated, cosigned and published, in that order.
"""
