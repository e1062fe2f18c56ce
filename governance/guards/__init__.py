"""What texts and answers may pass: rules, masking and unmasking of personal data, guarded streams."""

from governance.guards.chain import Chain, Looked
from governance.guards.rules import Request
from governance.guards.stream import StreamGuard
from governance.guards.vault import Vault

__all__ = ["Chain", "Looked", "Request", "StreamGuard", "Vault"]
