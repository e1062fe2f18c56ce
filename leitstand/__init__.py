"""The kernel that all other packages share: types, errors, settings, ports, events, the use-case file."""

__version__ = "0.1.0"
