"""The page of a server: files of this package, which ask no other host for anything."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from alpha import installation

PAGE = "play.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes() -> list[Route]:
    """The page at `/` and what it is made of under `/web/`."""
    files = {path.name: path.read_bytes() for path in (installation.FILES / "web").iterdir() if path.suffix in TYPES}

    def route(address: str, name: str) -> Route:
        async def answer(request: Request) -> Response:
            return Response(files[name], headers=HEADERS, media_type=TYPES[Path(name).suffix])

        return Route(address, answer)

    return [route("/", PAGE), *(route(f"/web/{name}", name) for name in files)]
