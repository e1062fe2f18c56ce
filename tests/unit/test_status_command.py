"""What `leitstand status` says about breakers."""

from leitstand.commands.local import _what, breakers_of


def test_upstreams_that_are_left_alone_are_named_and_well_ones_are_not() -> None:
    states = {"support": {"7": "open", "3": "closed"}, "finance": {"1": "half-open"}}
    assert _what({"breakers": states}) == "breakers: support:7 open, finance:1 half-open"
    assert _what({"breakers": {"support": {"7": "closed"}}}) == ""
    assert _what({"tag": "support:7"}) == "support:7"


def test_a_gateway_that_does_not_answer_names_none() -> None:
    assert breakers_of("http://127.0.0.1:1") == {}
