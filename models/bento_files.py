"""Bentos as single files: BentoML's own export and import, made repeatable."""

from pathlib import Path

from leitstand.errors import ConflictError, NotFoundError, PermanentBackendError
from leitstand.files import atomic_path

__all__ = ["export", "load"]


def export(tag: str, folder: Path) -> tuple[str, str, Path]:
    """Exports a Bento into `folder` and returns its name, version and file.

    An export that lies there already is used again: Bentos do not change, exports of one differ in their bytes.

    Raises:
        NotFoundError: The local store has no such Bento.
    """
    import bentoml  # noqa: PLC0415  -- two seconds that only Bentos need
    from bentoml.exceptions import NotFound  # noqa: PLC0415

    try:
        bento = bentoml.get(tag)
    except NotFound as error:
        raise NotFoundError(f"No Bento '{tag}' in the local store", hint="see `bentoml list`") from error
    name, version = bento.tag.name, str(bento.tag.version)
    path = folder / f"{name}-{version}.bento"
    if not path.is_file():
        with atomic_path(path) as part:
            written = Path(bentoml.export_bento(bento.tag, str(part.with_suffix(".bento"))))
            written.replace(part)
    return name, version, path


def load(tag: str, path: Path) -> str:
    """Imports a Bento file into the local store and returns the Bento's tag.

    Raises:
        ConflictError: The file holds another Bento than `tag`.
        PermanentBackendError: BentoML cannot read it.
    """
    import bentoml  # noqa: PLC0415
    from bentoml.exceptions import BentoMLException, NotFound  # noqa: PLC0415

    try:
        return str(bentoml.get(tag).tag)
    except NotFound:
        pass
    try:
        imported = str(bentoml.import_bento(str(path)).tag)
    except (BentoMLException, OSError, ValueError) as error:
        raise PermanentBackendError(f"BentoML cannot import {path.name}: {error}", hint="push it again") from error
    if imported != tag:
        raise ConflictError(f"{path.name} holds the Bento '{imported}', not '{tag}'", hint="push it again")
    return imported
