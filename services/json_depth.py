"""How deep a JSON text nests, found without parsing it, in linear time: deep ones make parsers work hard."""

import re

from services.errors import bad_request

__all__ = ["refuse_deep"]

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


def refuse_deep(text: bytes, limit: int) -> None:
    """Returns when no value of `text` lies inside of more than `limit` others.

    Raises:
        HttpError: 400, it is deeper, or its brackets do not match.
    """
    if text.count(b"[") + text.count(b"{") <= limit:
        return
    brackets = STRING.sub(b"", text).translate(None, NOT_BRACKETS)
    for _ in range(limit):  # each round takes away the innermost level
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise bad_request(f"the JSON is nested deeper than {limit} levels, or its brackets do not match")
