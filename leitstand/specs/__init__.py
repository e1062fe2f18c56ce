"""Parts of the use-case file that protect an inference: access, budgets, guards, audit, resilience."""
