"""A stream of events reads the same, however the network cuts it."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leitstand.errors import PermanentBackendError
from leitstand.sse import EventReader, ServerEvent

LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0\ufeff"), max_size=20)
NAME = LINE.filter(bool)


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, list[ServerEvent]]:
    """A stream as a careful server writes it, with everything that the standard allows in between."""
    text, expected, last_id = draw(st.sampled_from(["", "\ufeff"])), [], ""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    for _ in range(draw(st.integers(0, 5))):
        data, name = draw(st.lists(LINE, max_size=3)), draw(st.none() | NAME)
        lines = [f"data: {line}" for line in data]
        if name is not None:
            lines.append(f"event: {name}")
        if draw(st.booleans()):
            last_id = draw(LINE)
            lines.append(f"id: {last_id}")
        lines += draw(st.lists(st.sampled_from([":", ": ping", "retry: 5", "unknown", "other: x"]), max_size=2))
        for line in draw(st.permutations(lines)) if len(data) < 2 else lines:
            text += line + end
        text += end
        if data:
            expected.append(ServerEvent("\n".join(data), name or "message", last_id))
    return text, expected


@st.composite
def cut(draw: st.DrawFn) -> tuple[list[bytes], list[ServerEvent]]:
    text, expected = draw(streams())
    raw = text.encode()
    places = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    bounds = [0, *places, len(raw)]
    return [raw[a:b] for a, b in pairwise(bounds)], expected


@given(cut())
@example(([b"data: a\r", b"\n\r", b"\n"], [ServerEvent("a")]))
@example(([b"data: \xe2", b"\x82", b"\xac\n\n"], [ServerEvent("€")]))
@example(([b"\xef\xbb", b"\xbfdata: a\n\n"], [ServerEvent("a")]))
@example(([b"data\n\n"], [ServerEvent("")]))
def test_events_do_not_depend_on_the_pieces(given_: tuple[list[bytes], list[ServerEvent]]) -> None:
    pieces, expected = given_
    reader = EventReader()
    assert [event for piece in pieces for event in reader.feed(piece)] == expected


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_garbage_never_raises_and_reads_the_same_in_one_piece(pieces: list[bytes]) -> None:
    one, many = EventReader(), EventReader()
    assert [event for piece in pieces for event in many.feed(piece)] == one.feed(b"".join(pieces))


def test_what_an_abrupt_end_leaves_is_no_event() -> None:
    assert EventReader().feed(b"data: a\n\ndata: b\n") == [ServerEvent("a")]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 50, b"data: 01234\n"])
def test_an_event_that_never_ends_is_given_up(piece: bytes) -> None:
    reader = EventReader(limit=100)
    with pytest.raises(PermanentBackendError, match="longer than 100"):
        for _ in range(100):
            reader.feed(piece)
