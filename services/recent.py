"""Which requests this gateway answered lately: a bounded index from id to use case and number of texts."""

from collections import OrderedDict

__all__ = ["RecentRequests"]


class RecentRequests:
    """Remembers the last `limit` ids. One event loop owns it; reading from other threads is safe."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._known: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def add(self, use_case: str, request_id: str, texts: int) -> None:
        """Notes an answer; `texts` is 0 when they were not counted."""
        self._known[request_id] = (use_case, texts)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def find(self, request_id: str) -> tuple[str, int] | None:
        """Use case and number of texts, or None when it was long ago, elsewhere or never."""
        return self._known.get(request_id)
