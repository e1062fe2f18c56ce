"""Where alerts go: webhook, e-mail, Slack-compatible chat, Alertmanager. Each passes ``tests/contracts/``."""
