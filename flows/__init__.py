"""Prefect flows, and the wiring of batch adapters from settings."""
