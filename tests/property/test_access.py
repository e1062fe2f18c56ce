"""However a token, a key or a URL is changed, what was not meant to pass does not."""

import ipaddress
import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.access.addresses import forbidden
from governance.access.api_keys import find_key, key_id, mint
from governance.access.tokens import TokenVerifier
from leitstand.errors import AuthenticationFailed
from leitstand.types import utc_now
from services.errors import HttpError
from services.json_depth import refuse_deep
from tests.access_for_tests import NOW, RULES, TestIssuer

ISSUER, VERIFIER = TestIssuer(), TokenVerifier(RULES)
KEYS = ISSUER.keys()
TOKENS = [ISSUER.sign(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")]
LETTERS = string.ascii_letters + string.digits + "-_.= \x00é"
KEY, RECORD = mint("worker", "acme", ["a"], now=utc_now(), ends_at=None)


def mutated(text: str, data: Any) -> str:
    """`text` with a character changed, added, taken away, or two parts exchanged."""
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(LETTERS))
    how = data.draw(st.sampled_from(["change", "add", "drop", "double", "cut", "swap"]))
    if how == "swap":
        other = data.draw(st.sampled_from(TOKENS)).split(".")
        parts = text.split(".")
        index = data.draw(st.integers(0, len(parts) - 1))
        return ".".join([*parts[:index], other[index % 3], *parts[index + 1 :]])
    return {
        "change": text[:place] + letter + text[place + 1 :], "add": text[:place] + letter + text[place:],
        "drop": text[:place] + text[place + 1 :], "double": text[:place] * 2 + text[place:], "cut": text[:place],
    }[how]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(data=st.data(), token=st.sampled_from(TOKENS), times=st.integers(1, 3))
def test_a_mutated_token_is_never_accepted(data: Any, token: str, times: int) -> None:
    changed = token
    for _ in range(times):
        changed = mutated(changed, data) if changed else changed
    if changed in TOKENS:
        return
    with pytest.raises(AuthenticationFailed):
        VERIFIER.verify(changed, KEYS, NOW)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_refused_in_the_same_way(text: str) -> None:
    with pytest.raises(AuthenticationFailed):
        VERIFIER.verify(text, KEYS, NOW)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_key_is_never_accepted(data: Any) -> None:
    changed = mutated(KEY, data)
    if changed != KEY:
        assert not (key_id(changed) == RECORD.key_id and find_key(changed, RECORD))
    assert key_id(KEY) == RECORD.key_id and find_key(KEY, RECORD)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=200, deadline=None)
@given(value=JSON, limit=st.integers(1, 6), ascii_only=st.booleans())
def test_the_depth_of_json_is_what_a_parser_finds(value: Any, limit: int, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    brackets = text.count(b"[") + text.count(b"{")
    if depth(value) <= limit:
        refuse_deep(text, limit)
    elif brackets > limit:
        with pytest.raises(HttpError):
            refuse_deep(text, limit)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_what_is_not_global_needs_the_permission(ip: Any) -> None:
    if not ip.is_global and not forbidden(str(ip), private=True):
        inner = ip.version == 6 and (ip.ipv4_mapped or ip.sixtofour or ip.teredo)
        nat = ip.version == 6 and ip in ipaddress.ip_network("64:ff9b::/96")
        assert inner or nat or forbidden(str(ip), private=False)
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        assert forbidden(str(ip), private=True)
