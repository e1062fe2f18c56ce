"""What every route store checks in the same way, and the first table of a use case."""

from pydantic import ValidationError

from governance.access.addresses import check_url
from leitstand.errors import ConfigurationError, ConflictError, IntegrityError
from leitstand.ports import RouteStore
from leitstand.types import RouteTable, Target, utc_now

__all__ = ["conflict", "ensure_stable", "read_table", "stored"]

SCHEMA_VERSION = 2


def stored(table: RouteTable, expected: int) -> RouteTable:
    """`table` as revision ``expected + 1``.

    Raises:
        ConfigurationError: A canary share without a canary, an upstream URL that is not HTTP or holds credentials,
            or targets that do not speak the same protocol.
    """
    if table.canary is None and table.canary_percent:
        raise ConfigurationError(
            f"Routes of '{table.use_case}': {table.canary_percent:g} % for a canary, but there is none",
            hint="name the canary, or set the share to 0",
        )
    for target in table.targets():
        check_url(target.url, private=True)  # whether it may be private is asked of the gateway that calls it
        _check_protocol(table, target)
    return table.model_copy(update={"revision": expected + 1, "schema_version": SCHEMA_VERSION})


def _check_protocol(table: RouteTable, target: Target) -> None:
    where = f"Routes of '{table.use_case}'"
    if target.kind != table.stable.kind:
        raise ConfigurationError(
            f"{where}: version {target.version} speaks {target.kind}, stable speaks {table.stable.kind}",
            hint="an answer must be the same kind of answer, whoever gives it; use two use cases",
        )
    if target.kind == "v2" and not (target.model or target.key):
        return
    if target.kind == "v2" or not target.model:
        raise ConfigurationError(
            f"{where}: version {target.version} is of kind {target.kind} and names "
            f"{'a model or key' if target.kind == 'v2' else 'no model'}",
            hint="a model and a key belong to an OpenAI-compatible API: VERSION=openai+URL?model=NAME&key=NAME",
        )
    if any(sign in target.url for sign in "@?#"):
        raise ConfigurationError(
            f"{where}: the URL of version {target.version} holds more than host and path",
            hint="keep credentials in the setting `chat.keys`, and name the key",
        )


def read_table(record: str | bytes, use_case: str) -> RouteTable:
    """Reads one stored record.

    Raises:
        IntegrityError: It is not a route table.
    """
    try:
        return RouteTable.model_validate_json(record)
    except ValidationError as error:
        raise IntegrityError(
            f"The stored routes of '{use_case}' are not readable: {error.errors()[0]['msg']}",
            hint="restore the store from a backup, or write the table again",
        ) from error


def conflict(use_case: str, expected: int, found: int) -> ConflictError:
    """The error of a write that came second."""
    return ConflictError(
        f"Routes of '{use_case}' are at revision {found}, not {expected}: somebody else changed them",
        hint="read them again, and decide again",
    )


def ensure_stable(store: RouteStore, use_case: str, target: Target, *, actor: str, reason: str) -> RouteTable:
    """The table of `use_case`, with `target` as stable when there was none, or when its process was replaced.

    A Bento that is exchanged in place (another version at the URL of stable) becomes stable. Any other table
    stays as it is: moving traffic is a decision of the rollout.
    """
    table = store.read(use_case)
    if table is None:
        first = RouteTable(use_case=use_case, stable=target, changed_at=utc_now(), actor=actor, reason=reason)
        try:
            return store.write(first, expected=0)
        except ConflictError:  # another process was first
            return ensure_stable(store, use_case, target, actor=actor, reason=reason)
    if table.stable.url == target.url and table.stable.version != target.version:
        changes = {"stable": target, "changed_at": utc_now(), "actor": actor, "reason": reason}
        return store.write(table.model_copy(update=changes), expected=table.revision)
    return table
