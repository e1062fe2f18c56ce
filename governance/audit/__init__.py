"""The audit trail: append-only, hash-chained, encrypted per subject, signed, and verifiable without this program."""
