"""The page ``/docs``: the OpenAPI document in Swagger UI, from files of a wheel; a browser loads nothing else.

The page's own script is a file too, so that its content security policy needs no inline code. Like everything that is
not a probe it needs a credential where access is on; it is meant for a gateway on one's own machine.
"""

from functools import cache
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

from services.errors import not_found

__all__ = ["add_pages"]

ASSETS = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon.png": "image/png",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Leitstand gateway</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """\
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: false,
  validatorUrl: null,
});
"""


def add_pages(app: FastAPI) -> None:
    """Adds ``/docs`` and the files it needs."""
    headers = {"content-security-policy": POLICY}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(PAGE, 200, headers, "text/html; charset=utf-8")

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name == "start.js":
            return Response(START, 200, headers, "text/javascript; charset=utf-8")
        if name not in ASSETS:
            raise not_found(f"no such path: /docs/{name}")
        return Response(_read(name), 200, headers, ASSETS[name])


@cache
def _read(name: str) -> bytes:
    return (resources.files("fastapi_offline") / "static" / name).read_bytes()
