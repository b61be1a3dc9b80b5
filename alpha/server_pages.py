"""The pages of a server: files of this package, which ask no other host for anything."""

import html
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from alpha import installation

PAGES = {
    "/": "play.html",
    "/runs": "dashboard.html",
    "/run": "dashboard.html",
    "/compare": "dashboard.html",
    "/models": "dashboard.html",
    "/domains": "dashboard.html",
}
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
_NAVIGATION = "<!-- navigation -->"
_HEAD = "</head>"
_LINKS = {"/": "Playground", "/runs": "Runs", "/compare": "Compare", "/models": "Models", "/domains": "Domains"}


def routes(shows_runs: bool, token: str = "") -> list[Route]:
    """The pages, with links to each other, and what they are made of under `/web/`; without runs only the playground.

    `token` is what the pages show when they change something.
    """
    files = {path.name: path.read_bytes() for path in (installation.FILES / "web").iterdir() if path.suffix in TYPES}
    pages = PAGES if shows_runs else {"/": PAGES["/"]}
    contents = {address: _page(files[name].decode(), address, shows_runs, token) for address, name in pages.items()}
    contents |= {f"/web/{name}": content for name, content in files.items() if not name.endswith(".html")}

    def route(address: str, content: bytes) -> Route:
        media_type = TYPES[Path(address).suffix or ".html"]

        async def answer(request: Request) -> Response:
            return Response(content, headers=HEADERS, media_type=media_type)

        return Route(address, answer)

    return [route(address, content) for address, content in contents.items()]


def _page(content: str, address: str, shows_runs: bool, token: str) -> bytes:
    """A page with what depends on how the server was started."""
    if shows_runs:
        current = "/runs" if address == "/run" else address
        links = "".join(
            f'<a href="{link}"{" aria-current=page" if link == current else ""}>{text}</a>'
            for link, text in _LINKS.items()
        )
        content = content.replace(_NAVIGATION, f'<nav aria-label="Pages">{links}</nav>')
    if token:
        content = content.replace(_HEAD, f'<meta name="token" content="{html.escape(token)}">{_HEAD}')
    return content.encode()
