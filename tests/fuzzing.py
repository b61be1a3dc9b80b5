"""Files from strangers: damaged ones, given to whatever reads them, by a number that repeats the damage.

What is right: an exit code of 0, 1 or 2 (or an AlphaError), soon and in little memory; and where a file is as it was or
is made again, the same result. Anything else is a finding. `tests/test_fuzz.py` tries a few, `perf/fuzz.py` many.
"""

import contextlib
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import exchange_models
import numpy as np
from small_training import text_of, train

from alpha import checkpoint, cli, safetensors_file, settings, tokenizer_registry
from alpha.backend_helios_device import Device, NoVulkan, choose_device
from alpha.backend_helios_kernels import read_bundle
from alpha.chat_format import encode_chat
from alpha.config import resolve_model, resolve_training
from alpha.errors import AlphaError
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe

SECONDS = 20
MEMORY = 3 << 30
"""What one reading may take, beyond what the process has already."""

TOKENS = [
    b"", b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r", b"\r\n", b"\x1b[2J", b"=",
    b'"', b"#", b"[" * 5000, b'{"a":' * 5000, b"9" * 400, b"9" * 5000, b"1e999", b"-1e400", b"NaN", b"Infinity",
    b"null", b'"\\ud800"', b"-1", b"0", b"18446744073709551616", b"<|endoftext|>", "\u2028é🙂\u202e".encode(),
    b"\n{}\n", b'\n{"text": "a"}\n', b'\n{"step": 5, "loss": 1e308}\n', b"ALPHA_DEBUG=1\n", b"threads=",
    b"PK\x01\x02", b"PK\x05\x06",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 255, 65536, 2**31, 2**32, 2**63, 2**64, 10**18, 10**400, 10**4000, 1e308, -1e308,
    0.5, 1e-320, float("nan"), float("inf"), "", "x", "\0", "\ud800", "\udcff", "\x1b[2J", "a" * 5000, "../x",
    "/dev/zero", "<|endoftext|>", "é", [], {}, [[]], [None], {"a": 1}, ["a", "a"], [0] * 1000,
]  # fmt: skip


class Hang(BaseException):
    """A reading took longer than SECONDS."""


def damaged(content: bytes, draw: random.Random) -> bytes:
    """`content` with one to four changes of any kind."""
    result = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        start = draw.randrange(len(result) + 1)
        end = min(len(result), start + draw.choice((1, 1, 4, 16, 200)))
        result[start:end] = draw.choice((
            lambda: bytes([draw.randrange(256)]),
            lambda: draw.choice(TOKENS),
            lambda: draw.choice(TOKENS) + result[start:end],  # noqa: B023  (called at once)
            lambda: result[start:end] * draw.choice((2, 2, 100)),  # noqa: B023
            lambda: result[start:end][::-1],  # noqa: B023
            lambda: draw.randbytes(end - start),  # noqa: B023
            lambda: bytes(byte ^ 1 << draw.randrange(8) for byte in result[start:end]),  # noqa: B023
        ))()  # fmt: skip
        if draw.random() < 0.1:
            del result[draw.randrange(len(result) + 1) :]
    return bytes(result)


def changed(value: Any, draw: random.Random) -> Any:
    """JSON with another value, key or length somewhere."""
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, result = draw.choice(keys), value.copy()
        action = draw.random()
        if action < 0.1:
            del result[key]
        elif action < 0.15 and isinstance(result, dict):
            result[draw.choice(["x", "", "\0", *keys])] = result.pop(key)
        elif action < 0.2 and isinstance(result, list):
            result.insert(key, result[draw.choice(keys)])
        else:
            result[key] = changed(value[key], draw)
        return result
    return draw.choice(VALUES)


def changed_json(content: bytes, draw: random.Random) -> bytes:
    """A file of JSON, or of lines of it, changed as bytes or as values."""
    if draw.random() < 0.4 or not content.startswith(b"{"):
        return damaged(content, draw)
    lines = content.splitlines() if content.count(b"\n{") else [content]
    number = draw.randrange(len(lines))
    value = json.loads(lines[number])
    for _ in range(draw.choice((1, 1, 2, 5))):
        value = changed(value, draw)
    lines[number] = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    return b"\n".join(lines) + b"\n"


def changed_checkpoint(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint whose digests are right, but whose configuration, tokenizer, state or tensors are not."""
    size = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:size])
    key = draw.choice(["model", "training", "tokenizer", "state", "step", "model", "training", "tensors"])
    metadata = table["__metadata__"]
    if key == "tensors":
        name = draw.choice([name for name in table if name != "__metadata__"])
        table[name] = changed(table[name], draw)
    else:
        metadata[key] = json.dumps(changed(json.loads(metadata[key]), draw))
    entries = {name: entry for name, entry in table.items() if isinstance(entry, dict) and "dtype" in entry}
    shapes = {name: (safetensors_file._DTYPES.get(str(entry["dtype"])), entry.get("shape"))
              for name, entry in entries.items()}  # fmt: skip
    metadata["digest"] = checkpoint._header_digest(metadata, shapes)  # type: ignore[arg-type]
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + content[size:]


def changed_gzip(content: bytes, draw: random.Random) -> bytes:
    """A gzipped file, damaged outside or inside."""
    if draw.random() < 0.6:
        return damaged(content, draw)
    return gzip.compress(damaged(gzip.decompress(content), draw), 1)


def changed_zip(content: bytes, draw: random.Random) -> bytes:
    """A bundle of kernels, damaged outside, or whole with another description."""
    if draw.random() < 0.7:
        return damaged(content, draw)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(packed, "w") as result:
        for name in archive.namelist():
            each = archive.read(name)
            result.writestr(name, changed_json(each, draw) if name.endswith(".json") else each)
    return packed.getvalue()


def command(*arguments: str, codes: tuple[int, ...] = (0, 1, 2)) -> str:
    """What a command prints on standard output; its exit code must be one of `codes`."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = cli.main(arguments)
    assert code in codes, f"exit code {code}: {errors.getvalue()}"
    assert "Traceback" not in errors.getvalue(), errors.getvalue()
    return output.getvalue() if code == 0 else ""


# --- readers ----------------------------------------------------------------------------------------------------------

Change = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """`make` fills the current folder once; `use` reads it, one of the files that match `files` having been damaged by
    `change`. Raises AlphaError or nothing at all."""

    make: Callable[[], object]
    files: str
    change: Change
    use: Callable[[], object]


def _make_text() -> None:
    Path("corpus.txt").write_text(text_of(4000), encoding="utf-8")


def _make_run() -> None:
    _make_text()
    train(Path("corpus.txt"), Path("run"), iters=2, eval_interval=1, sample_interval=1, log_every=1)
    shutil.copy("run/checkpoint-2.safetensors", ".")


def _make_evaluated() -> None:
    _make_run()
    shutil.rmtree("cache")
    Path("expected").write_text(_loss())


def _loss() -> str:
    """Of the corpus, from the token cache."""
    printed = command("eval", "--checkpoint=checkpoint-2.safetensors", "--data=corpus.txt", "--json", codes=(0,))
    return str(json.loads(printed)["loss"])


def _evaluate_again() -> None:
    assert _loss() == Path("expected").read_text(), "another loss from a damaged token cache"


def _load_original() -> None:
    """A file whose digests are as they were is the checkpoint that was saved, or damaged."""
    loaded = checkpoint.load(Path("run/checkpoint-2.safetensors"))
    saved = checkpoint.load(Path("checkpoint-2.safetensors"))
    assert (loaded.step, loaded.model, loaded.training, loaded.tokenizer, loaded.state) == (
        saved.step, saved.model, saved.training, saved.tokenizer, saved.state
    )  # fmt: skip
    assert all(np.array_equal(loaded.tensors[name], saved.tensors[name]) for name in saved.tensors)


def _sample() -> None:
    command("sample", "--checkpoint=run/checkpoint-2.safetensors", "--prompt=The", "--steps=3")


def _resume() -> None:
    command("train", "--resume=run", "--iters=2")


def _list() -> None:
    command("runs", "--dir=.", codes=(0,))
    command("runs", "--dir=.", "--json", codes=(0,))


def _make_tokenizers() -> None:
    _make_text()
    for name in ("char", "word", "bpe"):
        tokenizer = tokenizer_registry.build(name, [text_of(4000)], 0 if name == "char" else 270)
        tokenizer_registry.save(Path(f"{name}-alpha.json"), tokenizer)
        tokenizer_registry.save_tokenizer_json(Path(f"{name}-hf.json"), tokenizer)


def _load_tokenizers() -> None:
    for path in Path().glob("*-*.json"):
        with contextlib.suppress(AlphaError):
            tokenizer = tokenizer_registry.load(path)
            text = "The <|endoftext|> cat\n é\U0001f642"
            decoded = tokenizer.decode(tokenizer.encode(text))
            assert "bpe" not in path.name or decoded in (text, f" {text}"), f"{path.name} loses text"


def _make_config() -> None:
    values = {"iters": 5, "batch": 4, "lr": 0.01, "optim": "adamw", "arch": "gpt2", "data": "a.txt", "dropout": 0.1,
              "layers": 2, "dim": 16, "heads": 2, "block": 32, "tokenizer": "bpe", "vocabSize": 300}  # fmt: skip
    Path("config.json").write_text(json.dumps(values))


def _read_config() -> None:
    model, training = settings.merge({"config": "config.json"})
    resolve_model(model)
    resolve_training(training)


def _make_env_file() -> None:
    Path("a.env").write_text("# notes\nALPHA_DEBUG=0\nthreads=2\ncheckpoint=true\n")


def _read_env_file() -> None:
    before = dict(os.environ)
    try:
        command("runs", "--dir=.", "--envFile=a.env")
    finally:
        os.environ.clear()
        os.environ.update(before)


def _make_bundle() -> None:
    with zipfile.ZipFile(Path(read_bundle.__globals__["__file__"]).with_name("kernels.zip")) as whole:
        description = json.loads(whole.read("manifest.json"))
        names = [name for name, entry in description["kernels"].items() if len(entry["variants"]) < 3][:3]
        description["kernels"] = {name: description["kernels"][name] for name in names}
        with zipfile.ZipFile("kernels.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("manifest.json", json.dumps(description))
            for entry in description["kernels"].values():
                for variant in entry["variants"].values():
                    bundle.writestr(variant["file"], whole.read(variant["file"]))


def _make_corpora() -> None:
    _make_run()
    text = text_of(3000)
    lines = "".join(json.dumps({"text": line}) + "\n" for line in text.splitlines())
    for name, content in (("a.txt", text + "<|endoftext|>" + text), ("a.jsonl", lines)):
        Path(f"data-{name}").write_text(content)
        Path(f"data-{name}.gz").write_bytes(gzip.compress(content.encode()))


def _read_corpora() -> None:
    for path in sorted(Path().glob("data-*")):
        command("eval", "--checkpoint=checkpoint-2.safetensors", f"--data={path}")
    command("tokenizer", "build", "--data=data-a.txt,data-a.jsonl.gz", "--tokenizer=bpe", "--vocabSize=260", "--out=t")


def _make_sources() -> None:
    Path("data.html").write_text("<html><head><title>t</title></head><body><p>A &amp; b.<pre> x </pre></body></html>")
    Path("data.md").write_text(text_of(2000))


def _read_sources() -> None:
    command("datagen", "--mode=corpus", "--sources=data.html,data.md", "--out=corpus.txt")


def _open_device() -> None:
    with Device(choose_device(), pipeline_cache=Path("pipelines")) as device:
        device.pipeline(next(iter(read_bundle().kernels.values())).spirv, push_bytes=128)


def _make_folders() -> None:
    for name in ("gpt2", "llama_shards"):
        exchange_models.golden_folder(name, Path(name))


def _import_folders() -> None:
    for name in ("gpt2", "llama_shards"):
        command("import", f"--from={name}", f"--out={name}.safetensors")
        if Path(f"{name}.safetensors").exists():
            command("sample", f"--checkpoint={name}.safetensors", "--prompt=a", "--steps=2", codes=(0, 1))


def _make_gguf() -> None:
    for name in ("gpt2", "apertus", "types"):
        shutil.copy(exchange_models.GOLDEN_GGUF / f"{name}.gguf", ".")


def _import_gguf() -> None:
    for name in ("gpt2", "apertus", "types"):
        command("import", f"--from={name}.gguf", f"--out={name}.safetensors")


TEMPLATE = """\
{%- macro turn(role, text) %}<|{{ role }}|>{{ text | trim }}<|end|>{% endmacro -%}
{%- set ns = namespace(count=0, system="") -%}
{%- if messages[0].role == "system" %}{% set ns.system = messages[0]["content"] %}{% endif -%}
{%- for message in messages if message.role != "system" -%}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("Roles take turns.") }}{% endif -%}
    {%- set text = message.content.split("\\n")[-1] ~ range(2) | list | join(",") -%}
    {%- set ns.count = ns.count + 1 %}{{ turn(message.role, text if loop.last else message["content"] | upper) }}
{%- endfor -%}
{{ bos_token }}{{ ns.count }}{{ {"a": [1, 2]} | tojson }}{% if add_generation_prompt %}<|assistant|>{% endif %}
"""


def _read_template() -> None:
    tokenizer = build_bpe(["The cat. " * 50], 300, (END_OF_TEXT, *CHAT_TOKENS))
    said = [{"role": role, "content": f"Said <|user|>\n{role}"} for role in ("system", "user", "assistant", "user")]
    encode_chat(tokenizer, Path("template.jinja").read_text(errors="replace"), said)


READERS = {
    "checkpoint bytes": Reader(_make_run, "run/checkpoint-2.safetensors", damaged, _load_original),
    "checkpoint to sample": Reader(_make_run, "run/checkpoint-2.safetensors", changed_checkpoint, _sample),
    "checkpoint to resume": Reader(_make_run, "run/checkpoint-2.safetensors", changed_checkpoint, _resume),
    "run to resume": Reader(_make_run, "run/*[nlt]", changed_json, _resume),
    "run to list": Reader(_make_run, "run/*[nl]", changed_json, _list),
    "tokenizers": Reader(_make_tokenizers, "*-*.json", changed_json, _load_tokenizers),
    "folder to import": Reader(_make_folders, "*/*", changed_json, _import_folders),
    "GGUF to import": Reader(_make_gguf, "*.gguf", damaged, _import_gguf),
    "chat template": Reader(
        lambda: Path("template.jinja").write_text(TEMPLATE), "template.jinja", damaged, _read_template
    ),
    "configuration": Reader(_make_config, "config.json", changed_json, _read_config),
    "environment file": Reader(_make_env_file, "a.env", damaged, _read_env_file),
    "kernels": Reader(_make_bundle, "kernels.zip", changed_zip, lambda: read_bundle(Path("kernels.zip"))),
    "token cache": Reader(_make_evaluated, "cache/alpha/tokens/*/*", damaged, _evaluate_again),
    "plain corpus": Reader(_make_corpora, "data-*[tl]", damaged, _read_corpora),
    "compressed corpus": Reader(_make_corpora, "data-*.gz", changed_gzip, _read_corpora),
    "sources": Reader(_make_sources, "data.*", damaged, _read_sources),
    "pipelines": Reader(_open_device, "pipelines", damaged, _open_device),
}


class Fuzzer:
    """A reader in a folder of its own, made once."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._reader = READERS[name]
        self._made, self._tried = folder / "made", folder / "tried"
        self._made.mkdir(parents=True)
        with self._inside(self._made):
            self._reader.make()
        self._files = sorted(path for path in self._made.glob(self._reader.files) if path.is_file())
        assert self._files, f"{name}: nothing to damage"

    def attempt(self, seed: int) -> None:
        """Damage a file in the way that belongs to `seed` and read it; raises whatever is a finding."""
        draw = random.Random(f"{self.name} {seed}")
        shutil.rmtree(self._tried, ignore_errors=True)
        shutil.copytree(self._made, self._tried)
        file = draw.choice(self._files)
        target = self._tried / file.relative_to(self._made)
        target.write_bytes(self._reader.change(file.read_bytes(), draw))
        with self._inside(self._tried), _bounded(), contextlib.suppress(AlphaError):
            self._reader.use()

    @contextlib.contextmanager
    def _inside(self, folder: Path) -> Iterator[None]:
        cache = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        try:
            with contextlib.chdir(folder):
                yield
        finally:
            if cache is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = cache


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raises Hang after SECONDS; memory beyond MEMORY is refused."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end after {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)


def has_vulkan() -> bool:
    """Whether there is a device for the reader of compiled pipelines."""
    try:
        choose_device()
    except NoVulkan:
        return False
    return True
