"""The pages of a server: files of this package, which ask no other host for anything."""

import html
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from alpha import installation

ADDRESSES = ("/", "/runs", "/run", "/compare", "/models", "/domains")
"""The playground, and the pages about runs, for each of which there is a module `view_*.js`."""

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
_END_OF_HEAD = "</head>"
_LINKS = {"/": "Playground", "/runs": "Runs", "/compare": "Compare", "/models": "Models", "/domains": "Domains"}
_IMPORT = re.compile(r'from "/web/(\w+\.js)"')


def routes(shows_runs: bool, token: str = "") -> list[Route]:
    """The pages, with links to each other, and what they are made of under `/web/`; without runs only the playground.

    `token` is what the pages show when they change something.
    """
    files = {path.name: path.read_text() for path in (installation.FILES / "web").iterdir() if path.suffix in TYPES}
    addresses = ADDRESSES if shows_runs else ADDRESSES[:1]
    contents = {address: _page(files, address, shows_runs, token) for address in addresses}
    contents |= {f"/web/{name}": content for name, content in files.items() if not name.endswith(".html")}

    def route(address: str, content: str) -> Route:
        media_type = TYPES[Path(address).suffix or ".html"]

        async def answer(request: Request) -> Response:
            return Response(content, headers=HEADERS, media_type=media_type)

        return Route(address, answer)

    return [route(address, content) for address, content in contents.items()]


def _page(files: dict[str, str], address: str, shows_runs: bool, token: str) -> str:
    """A page with what depends on its address and on how the server was started."""
    name = "play" if address == "/" else "dashboard"
    view = [] if address == "/" else [f"view{address.replace('/', '_')}.js"]
    head = files["head.html"].replace("PAGE", name)
    # Told at once, not one after the other as each module names the next: over ssh every turn takes a while.
    modules = _modules(files, [f"{name}.js", *view])
    extra = "".join(f'<link rel="modulepreload" href="/web/{each}">\n' for each in modules)
    if token:
        extra += f'<meta name="token" content="{html.escape(token)}">\n'
    content = head.replace(_END_OF_HEAD, extra + _END_OF_HEAD) + files[f"{name}.html"]
    if shows_runs:
        current = "/runs" if address == "/run" else address
        links = "".join(
            f'<a href="{link}"{" aria-current=page" if link == current else ""}>{text}</a>'
            for link, text in _LINKS.items()
        )
        content = content.replace(_NAVIGATION, f'<nav aria-label="Pages">{links}</nav>')
    return content


def _modules(files: dict[str, str], names: list[str]) -> list[str]:
    """Modules and all that they import."""
    found = list(names)
    for name in found:
        found += [each for each in dict.fromkeys(_IMPORT.findall(files[name])) if each not in found]
    return found
