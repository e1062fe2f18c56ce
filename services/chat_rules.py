"""What a use case's file says about chats, read once per use case."""

from collections.abc import Callable
from dataclasses import dataclass, field

from leitstand.errors import LeitstandError
from leitstand.settings import ChatSettings, Settings
from leitstand.specs.budgets import BudgetsSpec
from leitstand.specs.chat import ChatSpec
from leitstand.usecase import find, load

__all__ = ["ChatRules", "open_chat_rules"]

KNOWN = 1000
Specs = Callable[[str], tuple[ChatSpec, int]]


def _standard(use_case: str) -> tuple[ChatSpec, int]:
    return ChatSpec(), BudgetsSpec().max_tokens_out


@dataclass(frozen=True)
class ChatRules:
    """Limits of this gateway, and of each use case.

    Attributes:
        settings: Deadlines and keys.
        specs: The key `chat` of a use case, and the tokens of an answer to a request that names no maximum.
    """

    settings: ChatSettings = field(default_factory=ChatSettings)
    specs: Specs = _standard


def open_chat_rules(settings: Settings) -> ChatRules:
    """Reads use-case files when first asked; a use case without a readable file has the defaults."""
    read: dict[str, tuple[ChatSpec, int]] = {}

    def spec(use_case: str) -> tuple[ChatSpec, int]:
        found = read.get(use_case)
        if found is None:
            if len(read) >= KNOWN:  # names come from clients
                read.clear()
            try:
                loaded = load(find(use_case, settings.usecases))
                found = loaded.chat, loaded.budgets.max_tokens_out
            except (LeitstandError, OSError, ValueError):
                found = _standard(use_case)
            read[use_case] = found
        return found

    return ChatRules(settings.chat, spec)
