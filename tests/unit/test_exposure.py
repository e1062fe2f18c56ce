"""Where the gateway asks for credentials, and where it refuses to start."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from governance.access.api_keys import mint
from governance.access.dev_issuer import issue, open_dev_keys
from governance.access.opening import open_api_keys
from leitstand.errors import AuthenticationFailed, ConfigurationError, NotFoundError, PermanentBackendError
from leitstand.settings import AccessSettings, GatewaySettings, Settings, TlsSettings
from leitstand.types import Caller, utc_now
from leitstand.usecase import find
from services.access_wiring import is_loopback, is_required, open_access
from services.authentication import Authenticator, OpenAccess

ISSUER = AccessSettings(issuer="https://idp.example", audience="urn:leitstand:gateway")


def settings(home: Path, *, host: str = "127.0.0.1", **changes: Any) -> Settings:
    return Settings(home=home, gateway=GatewaySettings(host=host), **changes)


def test_on_this_machine_nobody_is_asked_unless_the_settings_say_so(tmp_path: Path) -> None:
    assert isinstance(open_access(settings(tmp_path)), OpenAccess)
    assert not is_required(settings(tmp_path, host="localhost"))
    assert isinstance(
        open_access(settings(tmp_path, access=ISSUER.model_copy(update={"mode": "required"}))), Authenticator
    )


@pytest.mark.parametrize(
    "changes",
    [{"environment": "production"}, {"host": "0.0.0.0"}, {"host": "10.0.0.1"}, {"host": "::"}, {"host": "gw"}],
)
def test_elsewhere_everybody_is_asked_and_somebody_must_be_able_to_answer(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="there are none"):
        is_required(settings(tmp_path, **changes))
    with pytest.raises(ConfigurationError, match="would answer everybody"):
        is_required(settings(tmp_path, access=AccessSettings(mode="off"), **changes))
    assert is_required(settings(tmp_path, access=ISSUER, **changes))


def test_an_api_key_is_enough_and_a_silent_store_may_hold_one(tmp_path: Path) -> None:
    away = AccessSettings(keys_uri="redis://127.0.0.1:1/0")
    assert is_required(settings(tmp_path, environment="production", access=away))
    open_api_keys(settings(tmp_path)).add(mint("a", "b", [], now=utc_now(), ends_at=None)[1])
    assert is_required(settings(tmp_path, environment="production"))


def test_the_issuer_of_this_machine_counts_on_this_machine_only(tmp_path: Path) -> None:
    here, there = settings(tmp_path, host="0.0.0.0"), settings(tmp_path, environment="production")
    token = issue(here, subject="a", tenant="b", scopes=["c"], ttl=timedelta(seconds=60))
    assert token.count(".") == 2
    assert is_required(here)
    with pytest.raises(ConfigurationError, match="there are none"):
        is_required(there)
    for refuse in (
        lambda: issue(there, subject="a", tenant="b", scopes=[], ttl=timedelta(1)),
        lambda: open_dev_keys(there),
    ):
        with pytest.raises(ConfigurationError, match="environment=local"):
            refuse()
    for ttl in (timedelta(), timedelta(days=31)):
        with pytest.raises(ConfigurationError, match="30 days"):
            issue(here, subject="a", tenant="b", scopes=[], ttl=ttl)
    assert (tmp_path / "access" / "dev-issuer" / "key.json").stat().st_mode & 0o077 == 0


def test_which_hosts_are_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "localhost.example", "")))


@pytest.mark.parametrize(
    ("make", "saying"),
    [
        (lambda: AccessSettings(issuer="https://idp"), "issuer and audience"),
        (lambda: AccessSettings(algorithms=("HS256",)), "RS256"),  # type: ignore[arg-type]
        (lambda: AccessSettings(leeway_s=600), "120"),
        (lambda: Settings(environment="staging", access=AccessSettings(issuer="http://idp", audience="a")), "https"),
        (lambda: TlsSettings(cert=Path("a")), "given together"),
        (lambda: TlsSettings(client_ca=Path("a")), "client_ca"),
    ],
)  # fmt: skip
def test_settings_that_would_weaken_it_are_refused(make: Any, saying: str) -> None:
    with pytest.raises(ValidationError, match=saying):
        make()


async def test_a_token_of_this_machine_opens_nothing_elsewhere(tmp_path: Path) -> None:
    open_api_keys(settings(tmp_path)).add(mint("a", "b", [], now=utc_now(), ends_at=None)[1])
    token = issue(settings(tmp_path), subject="a", tenant="b", scopes=["c"], ttl=timedelta(seconds=60))
    headers = {b"authorization": f"Bearer {token}".encode()}
    here = open_access(settings(tmp_path, access=AccessSettings(mode="required")))
    assert (await here.identify(headers)).subject == "a"
    there = open_access(settings(tmp_path, environment="production"))
    with pytest.raises(AuthenticationFailed, match="not accepted here"):
        await there.identify(headers)


async def test_a_broken_use_case_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "support").mkdir()
    (tmp_path / "support" / "usecase.yaml").write_text("access: [")
    access = open_access(
        settings(
            tmp_path,
            access=AccessSettings(mode="required", issuer="https://idp.example", audience="a"),
            usecases=tmp_path,
        )
    )
    with pytest.raises(PermanentBackendError, match="policy of 'support'"):
        access.permit(Caller(scopes=frozenset({"support:predict"})), "support", "predict")
    access.permit(Caller(scopes=frozenset({"other:predict"})), "other", "predict")


@pytest.mark.parametrize("name", ["../support", "/etc", "..", ".", "a/b", "", "a\0b", "x" * 70, "a\n"])
def test_a_use_case_is_looked_for_in_its_own_folder_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "support").mkdir()
    (tmp_path / "support" / "usecase.yaml").write_text("{}")
    with pytest.raises(NotFoundError, match="No use case") as caught:
        find(name, tmp_path / "support" / ".." / "usecases")
    assert len(caught.value.message) < 400
