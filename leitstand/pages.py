"""Self-contained HTML pages: one look for every report, no network, no script needed to read them."""

from pathlib import Path
from typing import Any

from leitstand.files import write_text

__all__ = ["render", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, *, search: Path | None = None, **context: Any) -> str:
    """Renders a template that extends ``base.html``; all values are HTML-escaped.

    Args:
        template: File name of the template.
        search: Folder that is searched before ``leitstand/templates``.
        **context: Values for the template.
    """
    import jinja2  # noqa: PLC0415  -- not needed by the CLI's help or by serving

    folders = [str(folder) for folder in (search, TEMPLATES) if folder]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["num"] = _number
    return environment.get_template(template).render(**context)


def write_page(target: Path, template: str, *, search: Path | None = None, **context: Any) -> Path:
    """Renders and writes a page atomically; returns its path."""
    return write_text(target, render(template, search=search, **context))


def _number(value: float | None, digits: int = 4) -> str:
    """A number for a table: `–` for None, counts with thousands separators, other floats with fixed digits."""
    if value is None:
        return "–"
    is_count = isinstance(value, int) or (value.is_integer() and value > 1)
    return f"{value:,.0f}" if is_count else f"{value:,.{digits}f}"
