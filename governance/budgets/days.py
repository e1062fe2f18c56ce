"""Calendar days of a time zone as spans of milliseconds: 23, 24 or 25 hours, without gap or overlap."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

__all__ = ["Days"]

MS = 1000


class Days:
    """The days of one zone.

    Args:
        zone: IANA name, like ``Europe/Berlin``.
    """

    def __init__(self, zone: str) -> None:
        self._zone = ZoneInfo(zone)
        self._last = (0, 0)

    def span(self, now_ms: int) -> tuple[int, int]:
        """Start and end (exclusive) of the day that `now_ms` lies in, in milliseconds since 1970."""
        start, end = self._last
        if not start <= now_ms < end:
            self._last = self._find(now_ms)
        return self._last

    def _find(self, now_ms: int) -> tuple[int, int]:
        day = datetime.fromtimestamp(now_ms // MS, self._zone).date()
        while now_ms >= self._midnight(day + timedelta(days=1)):  # clocks were set back over midnight
            day += timedelta(days=1)
        return self._midnight(day), self._midnight(day + timedelta(days=1))

    def _midnight(self, day: date) -> int:
        """The first moment of the day; where midnight is skipped, the moment at which clocks are set forward."""
        return int(datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp()) * MS
