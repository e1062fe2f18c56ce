"""Decisions and records: data validation and lineage. Imports the kernel only; never Prefect or BentoML."""
