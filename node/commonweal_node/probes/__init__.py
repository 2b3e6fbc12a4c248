"""What is measured of a model beside its loss.

The charter's probes, and a membership attack on its own training.
"""
