"""Long work: a queue on Redis streams, its HTTP routes, and the workers that take from it (ADR 0012)."""
