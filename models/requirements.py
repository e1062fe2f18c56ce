"""The exact requirements of a Bento: the installed, tested versions of the serving packages and all they need.

Reads installed metadata only; resolves nothing and asks no index.
"""

from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from leitstand.errors import MissingExtraError

__all__ = ["pinned", "roots_for"]

_ROOTS = (
    "bentoml", "tokenizers", "numpy", "orjson", "prometheus_client", "pydantic", "pydantic-settings", "annotated-types",
    "uvloop", "httptools",
)  # fmt: skip
_ENGINES = {"openvino": ("openvino",), "torch": ("torch", "transformers", "safetensors")}


def roots_for(engine: str) -> tuple[str, ...]:
    """The packages that serving with `engine` imports."""
    return _ROOTS + _ENGINES[engine]


def pinned(roots: Iterable[str]) -> list[str]:
    """``name==version`` of every root and everything it requires here, sorted.

    Raises:
        MissingExtraError: A root is not installed.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        key = f"{name}[{','.join(sorted(wanted.extras))}]" if wanted.extras else name
        if key in found:
            continue
        try:
            distribution = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError(
                f"'{wanted.name}' is not installed, but serving needs it", hint="pip install 'leitstand[serving]'"
            ) from error
        found[key] = found[name] = distribution.version.partition("+")[0]
        for line in distribution.requires or ():
            needed = Requirement(line)
            if _applies(needed, wanted.extras):
                waiting.append(needed)
    return sorted(f"{name}=={version}" for name, version in found.items() if "[" not in name)


def _applies(needed: Requirement, extras: set[str]) -> bool:
    marker = needed.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}))
