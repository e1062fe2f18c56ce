"""Secrets do not reach the log, whoever logs them."""

import io
import logging

import pytest
import structlog

from governance.access.api_keys import mint
from leitstand.events import configure_logging
from leitstand.log_redaction import REDACTED, redact
from leitstand.types import utc_now
from tests.access_for_tests import TestIssuer

KEY, _ = mint("a", "b", [], now=utc_now(), ends_at=None)
TOKEN = TestIssuer().sign()
SECRETS = {
    TOKEN: "the token {} came", KEY: "the key {} came", "hunter2hunter2": "postgresql://ada:{}@db/x is down",
    "s3cr3t-value": '{{"headers": {{"x-api-key": "{}"}}}}', "abcdefgh12345": "Authorization: Bearer {}",
    "p4ssw0rd": "password={} host=db", "0123456789abcdef": "[(b'x-api-key', b'{}')]",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "line"), SECRETS.items(), ids=range(len(SECRETS)))
def test_what_looks_like_a_secret_is_taken_out(secret: str, line: str) -> None:
    clean = redact(line.format(secret))
    assert secret not in clean and REDACTED in clean


def test_other_lines_stay_as_they_are() -> None:
    for line in (
        '{"message": "The route store answers again", "url": "http://127.0.0.1:3000/v2"}', "tokens: 12 in, 3 out",
        "Secret scopes are missing", '{"tokens_in": 12345, "request_id": "0192-abcd"}', "eyJ is how JWTs begin",
    ):  # fmt: skip
        assert redact(line) == line


@pytest.mark.parametrize("style", ["ecs", "console"])
def test_no_logger_writes_them(style: str) -> None:
    stream = io.StringIO()
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    try:
        configure_logging("INFO", stream, style=style, libraries=True)  # type: ignore[arg-type]
        for secret, line in SECRETS.items():
            structlog.get_logger().info(line.format(secret), detail=line.format(secret))
            logging.getLogger("library").warning("failed: %s", line.format(secret))
            try:
                raise ValueError(line.format(secret))
            except ValueError:
                structlog.get_logger().exception("It broke")
    finally:
        root.handlers[:] = before
        structlog.reset_defaults()
    written = stream.getvalue()
    assert written.count(REDACTED) >= 4 * len(SECRETS)
    assert not [secret for secret in SECRETS if secret in written]
