"""Who may ask a Bento."""

from typing import Any

import pytest
from pydantic import SecretStr

from leitstand.errors import ConfigurationError
from leitstand.settings import ServingSettings, Settings
from services.bento_access import BentoAccess, bento_access, refuse_open
from services.protocol import FrontDoor, Protocol

TOKEN, OLD = "n" * 32, "o" * 32
INFER = "/v2/models/support/infer"


def status(access: BentoAccess, path: str = INFER, *values: bytes) -> int:
    refusal = access.refusal({"path": path, "headers": [(b"authorization", value) for value in values]})
    return refusal[0] if refusal else 200


def test_only_who_shows_the_secret_is_answered() -> None:
    access = BentoAccess(TOKEN)
    assert status(access, INFER, f"Bearer {TOKEN}".encode()) == 200
    assert status(access, INFER, f"bearer  {TOKEN} ".encode()) == 200
    for wrong in (b"", b"Bearer", b"Bearer ", b"Basic " + TOKEN.encode(), TOKEN.encode(), b"Bearer " + b"N" * 32):
        assert status(access, INFER, wrong) == 401
    assert status(access) == 401
    for path in ("/classify", "/", "/docs.json", "/v2", "/v2/models/support", "/livez/../classify"):
        assert status(access, path) == 401


def test_probes_and_metrics_are_open() -> None:
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert status(BentoAccess(TOKEN), path) == 200


def test_the_previous_secret_counts_while_it_is_exchanged() -> None:
    access = bento_access(Settings(serving=ServingSettings(token=SecretStr(TOKEN), previous_token=SecretStr(OLD))))
    assert status(access, INFER, f"Bearer {TOKEN}".encode()) == status(access, INFER, f"Bearer {OLD}".encode()) == 200


def test_without_a_secret_a_bento_starts_in_the_local_environment_only() -> None:
    assert status(bento_access(Settings())) == 200
    refuse_open(Settings())
    with pytest.raises(ConfigurationError, match="would answer everybody"):
        refuse_open(Settings(environment="production"))
    refuse_open(Settings(environment="production", serving=ServingSettings(token=SecretStr(TOKEN))))


async def test_the_front_door_asks_before_anything_else() -> None:
    async def app(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    door, sent = FrontDoor(app, Protocol(), BentoAccess(TOKEN)), []

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    for path in ("/v2/models/support/infer", "/classify", "/v2"):
        await door({"type": "http", "method": "POST", "path": path, "headers": []}, None, send)  # type: ignore[arg-type]
    assert [each for each in sent if each] == [401, 401, 401]
    sent.clear()
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    await door({"type": "http", "method": "GET", "path": "/classify", "headers": headers}, None, send)  # type: ignore[arg-type]
    assert sent == [200]
