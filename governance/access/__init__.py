"""Who asks: tokens of an issuer, API keys, and where requests may go."""
