"""`alpha serve`: trained models as an HTTP server that OpenAI's clients can use."""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any

from alpha import environment
from alpha.config import BACKEND_HELP, BACKENDS, DEVICE_HELP, DTYPE_HELP, PRECISIONS, THREADS_HELP
from alpha.errors import AlphaError, UsageError
from alpha.installation import missing_package
from alpha.option import option, parse_size
from alpha.terminal import print_note, print_text, print_warning

_PACKAGES = ("jinja2", "prometheus_client", "starlette", "uvicorn")


@dataclass(frozen=True)
class ServeOptions:
    """The options of `alpha serve`."""

    checkpoint: str = option(
        "",
        "A checkpoint, a run's folder or its id; several separated by commas; the default is every run of --dir.",
        metavar="RUN",
    )
    dir: str = option("runs", "Folder of the runs, loaded when they are first asked for.", metavar="DIR")
    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0 = all of this machine's.", metavar="ADDRESS")
    port: int = option(8000, "Port to listen at; 0 = any that is free.", minimum=0, maximum=65535)
    api_key: str = option(
        "", "Key that clients must send; the default is ALPHA_API_KEY's, which other users of the machine do not see."
    )
    cors_origin: tuple[str, ...] = option(
        (), "Let pages of this origin ask, such as http://localhost:3000; may be given several times.", metavar="ORIGIN"
    )
    max_batch: int = option(16, "Texts that are computed at a time.", minimum=1, maximum=1024)
    max_queue: int = option(256, "Texts that may wait for their turn.", minimum=1, maximum=1 << 20)
    max_models: int = option(4, "Models that are in memory at a time.", minimum=1, maximum=1024)
    cache_memory: str = option(
        "", "Memory for the keys and values of each model, such as 4GB; the default is enough for maxBatch texts, but "
        "not more than half of what is free.", metavar="SIZE",
    )  # fmt: skip
    allow_edit: bool = option(False, "Let the pages of the runs rename, annotate, group and delete them.")
    backend: str = option("auto", BACKEND_HELP, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, minimum=0, maximum=1024)


OPTIONS = (ServeOptions,)
DETAILS = """
Clients find the API at http://ADDRESS:PORT/v1. The model RUN is the newest checkpoint of a run,
also while it trains, and RUN@500 that of step 500. Ctrl-C stops the server when the answers that
are under way have ended, or after 10 seconds; once more stops it at once. Prompts and answers are
not logged. Without a key everybody who reaches the port may ask.
It needs packages: pip install '.[serve]' in Alpha's folder.

Examples:
  alpha serve --checkpoint=runs/20261123-101500-3f2a1b
  curl http://127.0.0.1:8000/v1/completions --json '{"prompt": "Once "}'
"""


def run(given: dict[str, Any]) -> None:
    """Serve until a signal says to stop."""
    options = ServeOptions(**given)
    try:
        from alpha import chat_template  # noqa: F401  (what a chat will ask for)
        from alpha.server import Access, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _PACKAGES:
            raise
        raise missing_package("alpha serve", error.name, "serve") from error
    from alpha import backends
    from alpha.run_reader import has_runs, root_of
    from alpha.server_models import Limits, Models
    from alpha.server_runs import RunPages

    names = [name for name in options.checkpoint.split(",") if name]
    if options.checkpoint and not names:
        raise UsageError("--checkpoint names no model.")
    root = root_of(given)
    cache_memory = parse_size(options.cache_memory, "--cacheMemory") if options.cache_memory else None
    api_key = options.api_key or os.environ.get(environment.API_KEY, "")
    with _listening(options.host, options.port) as listening:
        backend = backends.create(options.backend, options.device, options.dtype)
        if options.backend == "auto":
            print_note(backends.choice(backend.name))
        limits = Limits(options.max_batch, options.max_queue, cache_memory, options.threads, options.max_models)
        models = Models(backend, limits, names, root)
        what = ", ".join(names) if names else f"the runs in {root}/"
        if not names and not has_runs(root):
            print_note(f"There are no runs in {root}/ yet; those that will be there are served, too.")
        is_local = listening.getsockname()[0] in ("127.0.0.1", "::1")
        if not is_local and not api_key:
            print_warning(
                "Everybody who reaches this port may use the models; --apiKey or ALPHA_API_KEY asks for a key."
            )
        # What others can reach has names that nobody here knows, behind a proxy for instance.
        access = Access(api_key, options.cors_origin, (options.host,) if is_local else None)
        address = _address(options.host, listening)
        runs = None if names else RunPages(root, options.allow_edit)
        asyncio.run(serve(models, access, listening, lambda: print_text(f"Serving {what} at {address}/v1"), runs))


def _address(host: str, listening: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises AlphaError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        known = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno
        reason = os.strerror(known) if known else error
        raise AlphaError(f"Cannot listen at {host} port {port}: {reason}. Choose another --port or --host.") from error
    return listening
