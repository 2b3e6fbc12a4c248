"""The sequencer of a consortium's log, its rounds on Flower, and the exchange of blobs. No authority over content."""
