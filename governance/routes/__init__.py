"""Where route tables are kept: SQLite on one machine, Redis or PostgreSQL for gateways on several."""
