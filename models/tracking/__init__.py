"""Adapters of the ExperimentTracker port, and run comparison."""
