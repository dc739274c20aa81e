"""Experiment trackers: `python -m s2flow.tracking` publishes a store."""
