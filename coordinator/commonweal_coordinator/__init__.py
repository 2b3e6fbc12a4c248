"""The sequencer of a consortium's log, its rounds, and the exchange of blobs. No authority over content."""
