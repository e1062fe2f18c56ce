"""Translates what boto3 raises into the error tree. Every class of ``botocore.exceptions`` has a place here."""

import contextlib
from collections.abc import Iterator

from botocore import exceptions as aws

from leitstand.errors import LeitstandError, NotFoundError, PermanentBackendError, TransientBackendError

__all__ = ["translate", "translated"]

MISSING = {"NoSuchKey", "NotFound", "404", "NoSuchUpload", "NoSuchVersion"}
BUSY = {
    "InternalError", "OperationAborted", "PreconditionFailed", "RequestTimeout", "RequestTimeoutException", "SlowDown",
    "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests", "412", "503",
}  # fmt: skip
TRANSIENT = (
    aws.HTTPClientError,
    aws.ConnectionError,
    aws.IncompleteReadError,
    aws.ChecksumError,
    aws.FlexibleChecksumError,
    aws.MetadataRetrievalError,
    aws.WaiterError,
)
CREDENTIALS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.NoAuthTokenError,
    aws.TokenRetrievalError,
    aws.SSOError,
    aws.LoginError,
    aws.RefreshWithMFAUnsupportedError,
    aws.InfiniteLoopConfigError,
)
CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) to an identity that may read and write there"
)
SETTINGS_HINT = "check LEITSTAND_S3__ENDPOINT_URL, LEITSTAND_S3__REGION and the AWS configuration file"
BUCKET_HINT = "create the bucket, or correct the name in the s3:// URI"
CLOCK_HINT = "set this machine's clock; S3 refuses requests signed more than 15 minutes off"


def translate(error: Exception, what: str) -> LeitstandError:
    """The error of our tree that `error` stands for; `what` names the object, like ``s3://bucket/key``."""
    if isinstance(error, aws.ClientError):
        return _from_answer(error, what)
    if isinstance(error, CREDENTIALS):
        return PermanentBackendError(f"{what}: no usable S3 credentials: {error}", hint=CREDENTIALS_HINT)
    if isinstance(error, TRANSIENT) and not isinstance(error, aws.SSLError):
        return TransientBackendError(f"{what}: S3 could not be reached: {error}", hint=SETTINGS_HINT)
    return PermanentBackendError(f"{what}: the S3 request could not be made: {error}", hint=SETTINGS_HINT)


def _from_answer(error: aws.ClientError, what: str) -> LeitstandError:
    """Judges by S3's error code first and by the HTTP status when the code is unknown."""
    detail = error.response.get("Error", {})
    code = str(detail.get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{code} {detail.get('Message', '')}".strip()
    if code == "NoSuchBucket":
        return PermanentBackendError(f"{what}: the bucket does not exist", hint=BUCKET_HINT)
    if code in MISSING:
        return NotFoundError(f"{what} does not exist", hint="list what is there, or correct the name")
    if code in BUSY or status == 429 or status >= 500:  # noqa: PLR2004
        return TransientBackendError(f"{what}: S3 answered {said}")
    if code == "RequestTimeTooSkewed":
        return PermanentBackendError(f"{what}: S3 answered {said}", hint=CLOCK_HINT)
    if status in (401, 403):
        return PermanentBackendError(f"{what}: S3 refused the request: {said}", hint=CREDENTIALS_HINT)
    return PermanentBackendError(f"{what}: S3 answered {said}", hint=SETTINGS_HINT)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raises every boto3 error of the block as an error of our tree, with the original as its cause."""
    try:
        yield
    except (aws.BotoCoreError, aws.ClientError, aws.UndefinedModelAttributeError) as error:
        raise translate(error, what) from error
