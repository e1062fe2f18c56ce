"""Server-sent events, read from bytes that arrive in any pieces (WHATWG HTML, section 9.2.6).

Lines may end with LF, CRLF or CR, also cut in two by the network; comments and unknown fields are skipped;
a UTF-8 character may be cut anywhere. An event counts when its empty line came: what an abrupt end leaves is lost,
as the standard says. `limit` bounds one event, because a server that never ends a line must not fill the memory.
"""

import codecs
from dataclasses import dataclass

from leitstand.errors import PermanentBackendError

__all__ = ["EventReader", "ServerEvent"]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        data: Its data lines, joined with LF.
        event: Its type; ``message`` when it names none.
        id: The last id seen, this event's or an earlier one's.
    """

    data: str
    event: str = "message"
    id: str = ""


class EventReader:
    """Turns pieces into events. One per stream.

    Args:
        limit: Characters that one event may have.
    """

    def __init__(self, limit: int = 2**20) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._limit = limit
        self._rest: list[str] = []
        self._held = 0
        self._after_cr = False
        self._data: list[str] = []
        self._size = 0
        self._event = ""
        self._id = ""

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that `piece` completes.

        Raises:
            PermanentBackendError: An event is longer than the limit.
        """
        text = self._decoder.decode(piece)
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        if not text:
            return []
        self._after_cr = text.endswith("\r")
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = text.split("\n")
        if len(lines) > 1:
            lines[0] = "".join((*self._rest, lines[0]))
            self._rest, self._held = [], 0
        last = lines.pop()
        if last:
            self._rest.append(last)
            self._held += len(last)
            self._bound(self._size + self._held)
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._size += len(value)
            self._bound(self._size)
        elif field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, event = self._data, self._event
        self._data, self._size, self._event = [], 0, ""
        return ServerEvent("\n".join(data), event or "message", self._id) if data else None

    def _bound(self, size: int) -> None:
        if size > self._limit:
            raise PermanentBackendError(f"An event of the stream is longer than {self._limit} characters")
