"""Keys of an issuer: discovered, rotated, kept while it is away, and never fetched as often as strangers like."""

import asyncio
import json
from typing import Any

import pytest

from governance.access.issuer_keys import IssuerKeys
from leitstand.errors import TransientBackendError
from tests.access_for_tests import ISSUER, TestIssuer

KEYS = TestIssuer()


class Provider:
    """Answers as an identity provider would."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {
            ISSUER + "/.well-known/openid-configuration": {"issuer": ISSUER, "jwks_uri": ISSUER + "/jwks"},
            ISSUER + "/jwks": KEYS.jwks("RS256"),
        }
        self.asked: list[str] = []
        self.down = False
        self.now = 1000.0

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        await asyncio.sleep(0)
        if self.down or url not in self.documents:
            raise TransientBackendError(f"{url} is away")
        document = self.documents[url]
        return document if isinstance(document, bytes) else json.dumps(document).encode()

    def source(self, **options: Any) -> IssuerKeys:
        return IssuerKeys(ISSUER, self.fetch, clock=lambda: self.now, ttl_s=100, keep_s=1000, pause_s=10, **options)


async def settled(source: IssuerKeys) -> None:
    while source._fetching is not None:
        await asyncio.sleep(0)


async def test_keys_are_discovered_once_for_many_requests() -> None:
    provider = Provider()
    source = provider.source()
    found = await asyncio.gather(*(source.keys("RS256") for _ in range(20)))
    assert all(list(keys) == ["RS256"] for keys in found)
    assert len(provider.asked) == 2


async def test_an_unknown_id_finds_a_rotated_key_at_once() -> None:
    provider = Provider()
    source = provider.source()
    await source.keys("RS256")
    before = source.generation()
    provider.documents[ISSUER + "/jwks"] = KEYS.jwks("RS256", "ES256")
    provider.now += 10
    assert "ES256" in await source.keys("ES256")
    assert source.generation() != before


async def test_forged_ids_cause_one_fetch_per_pause() -> None:
    provider = Provider()
    source = provider.source(jwks_url=ISSUER + "/jwks")
    for number in range(50):
        await source.keys(f"forged-{number}")
    assert len(provider.asked) == 1
    provider.now += 10
    for number in range(50):
        await source.keys(f"forged-{number}")
    assert len(provider.asked) == 2


async def test_old_keys_are_fetched_again_without_anybody_waiting() -> None:
    provider = Provider()
    source = provider.source()
    await source.keys("RS256")
    before = source.generation()
    provider.documents[ISSUER + "/jwks"] = KEYS.jwks("ES256")
    provider.now += 100
    assert source.generation() == before
    await settled(source)
    assert source.generation() != before
    assert list(await source.keys("ES256")) == ["ES256"]


async def test_a_withdrawn_key_is_forgotten() -> None:
    provider = Provider()
    source = provider.source()
    await source.keys("RS256")
    provider.documents[ISSUER + "/jwks"] = KEYS.jwks("ES256")
    provider.now += 100
    source.generation()
    await settled(source)
    assert "RS256" not in await source.keys("RS256")


async def test_the_last_keys_are_used_while_the_issuer_is_away_and_no_longer() -> None:
    provider = Provider()
    source = provider.source()
    await source.keys("RS256")
    provider.down = True
    provider.now += 999
    assert list(await source.keys("RS256")) == ["RS256"]
    assert source.generation() == 1
    await settled(source)
    provider.now += 1
    with pytest.raises(TransientBackendError, match="is away"):
        await source.keys("RS256")
    with pytest.raises(TransientBackendError, match="not known"):
        source.generation()
    provider.down = False
    provider.now += 10
    assert list(await source.keys("RS256")) == ["RS256"]


@pytest.mark.parametrize(
    "documents",
    [
        {"/.well-known/openid-configuration": {"issuer": "https://evil.example", "jwks_uri": ISSUER + "/jwks"}},
        {"/.well-known/openid-configuration": {"issuer": ISSUER, "jwks_uri": "http://issuer.example/jwks"}},
        {"/.well-known/openid-configuration": {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"}},
        {"/.well-known/openid-configuration": {"issuer": ISSUER}}, {"/.well-known/openid-configuration": []},
        {"/.well-known/openid-configuration": b"<html>"}, {"/jwks": b"{"}, {"/jwks": {"keys": []}}, {"/jwks": []},
        {"/jwks": b"[" * 100_000},
    ],
)  # fmt: skip
async def test_documents_that_cannot_be_trusted_give_no_keys(documents: dict[str, Any]) -> None:
    provider = Provider()
    provider.documents |= {ISSUER + path: document for path, document in documents.items()}
    source = provider.source()
    with pytest.raises(TransientBackendError, match="not known"):
        await source.keys("RS256")


async def test_closing_ends_a_fetch_that_runs() -> None:
    source = IssuerKeys(ISSUER, lambda _: asyncio.Event().wait())  # type: ignore[arg-type,return-value]
    waiting = asyncio.create_task(source.keys("RS256"))
    await asyncio.sleep(0)
    await source.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
