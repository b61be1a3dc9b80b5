"""A Space of Hugging Face: a folder that serves a model wherever there is Docker.

It holds the checkpoint without the optimizer's state, Alpha's sources, what they need, and a Dockerfile that starts
`alpha serve`.
"""

import json
import shutil
from importlib import metadata
from pathlib import Path

from alpha import checkpoint, files, installation
from alpha.checkpoint import OPTIMIZER_PREFIX, Checkpoint
from alpha.errors import AlphaError
from alpha.new_folder import filling

CHECKPOINT = "model.safetensors"
PORT = 7860
"""Where the Hub expects a Space to answer, unless its README says otherwise."""

START = (
    "python", "-c", "from alpha.process import start; start()",
    "serve", f"--checkpoint={CHECKPOINT}", "--host=0.0.0.0", f"--port={PORT}", "--backend=cpu_ref",
)  # fmt: skip
"""The command that the container runs, in the folder."""

_PACKAGE_FILES = ("*.py", "*.txt", "*.zip", "py.typed", "web/*")
_EXTRAS = ("serve",)

_DOCKERFILE = """\
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 user
WORKDIR /home/user/app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY --chown=user . .
USER user
EXPOSE {port}
CMD [{command}]
"""
_README = """\
---
title: {quoted_title}
sdk: docker
app_port: {port}
---

# {title}

A language model made with Alpha, with a page to play in and an API that OpenAI's clients speak. Anywhere else:

    docker build -t model . && docker run -p {port}:{port} model

and then http://127.0.0.1:{port}.
"""


def write_space(folder: Path, saved: Checkpoint, title: str) -> None:
    """Write the folder, which must be empty or missing. Raises AlphaError when it cannot be."""
    if installation.IS_EXECUTABLE:
        raise AlphaError("A Space is made of Alpha's sources, which the executable does not have; install it with pip.")
    weights = {name: array for name, array in saved.tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
    declared = {name: (array.dtype.name, array.shape) for name, array in weights.items()}
    command = ", ".join(f'"{part}"' for part in START)
    texts = {
        "requirements.txt": "".join(f"{each}\n" for each in _requirements()),
        "Dockerfile": _DOCKERFILE.format(port=PORT, command=command),
        "README.md": _README.format(port=PORT, title=title, quoted_title=json.dumps(title)),
    }
    with filling(folder) as new:
        checkpoint.write_in_turn(new / CHECKPOINT, saved, declared, weights.__getitem__)
        for pattern in _PACKAGE_FILES:
            for path in sorted(installation.PACKAGE.glob(pattern)):
                target = new / path.relative_to(installation.PACKAGE.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        for name, text in texts.items():
            files.write_bytes(new / name, text.encode(errors="backslashreplace"))  # a file's name may have any bytes


def _requirements() -> list[str]:
    """What Alpha needs for serving, as its installation says."""
    result = []
    for line in metadata.requires("alpha-gpt") or []:
        requirement, _, condition = line.partition(";")
        if not condition or any(f'"{extra}"' in condition for extra in _EXTRAS):
            result.append(requirement.strip())
    return result
