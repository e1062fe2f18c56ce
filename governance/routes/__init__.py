"""Where route tables are kept: SQLite on one machine, Redis for gateways on several."""
