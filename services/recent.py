"""What this gateway answered lately: a bounded index from request id to who answered, and what."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RecentAnswer", "RecentRequests"]


@dataclass(slots=True)
class RecentAnswer:
    """One answered request.

    Attributes:
        use_case: Whose it was.
        texts: How many texts it had; 0 when they were not counted.
        version: Version that answered.
        route: Route that it answered on.
        labels: What was answered, one per text; empty when it was passed on unread.
        judged: Texts that feedback has spoken about.
    """

    use_case: str
    texts: int = 0
    version: int = 0
    route: str = ""
    labels: Sequence[str] = ()
    judged: frozenset[int] = frozenset()


class RecentRequests:
    """Remembers the last `limit` ids. One event loop owns it; reading from other threads is safe."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._known: OrderedDict[str, RecentAnswer] = OrderedDict()

    def add(self, request_id: str, answer: RecentAnswer) -> None:
        """Notes an answer."""
        self._known[request_id] = answer
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def find(self, request_id: str) -> RecentAnswer | None:
        """None when it was long ago, elsewhere or never."""
        return self._known.get(request_id)
