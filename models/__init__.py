"""Data sets, training, evaluation, gates, registry, tracking and packaging of models."""
