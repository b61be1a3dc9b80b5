"""alpha hub, in a process of its own, against a fake hub on loopback."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import fake_hub
import pytest
from exchange_models import contents, golden_folder, make_checkpoint, run

from alpha import checkpoint, installation
from alpha.exchange_space import START

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: alpha hub is NOT tested here")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def served(tmp_path):
    with fake_hub.running() as (fake, address):
        yield fake, address, tmp_path


def alpha(served, *arguments, code=0, token="hf_test", **variables):
    """What a command prints, and its errors; it must end with `code`."""
    _, address, folder = served
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **({"HF_TOKEN": token} if token else {}),
        **variables,
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "alpha.py"), "hub", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_push_and_pull(served):
    fake, address, folder = served
    path = make_checkpoint(folder, "llama")
    run("export", f"--checkpoint={path}", f"--out={folder / 'exported'}")
    printed, _ = alpha(served, "push", f"--checkpoint={path}", "--repo=me/small", "--private", "--json")
    assert json.loads(printed)["url"] == f"{address}/me/small"
    assert fake.files["me/small"] == contents(folder / "exported")
    assert fake.private == {"me/small": True}
    assert not list((folder / "home" / ".cache" / "alpha" / "hub").iterdir())
    alpha(served, "pull", "--repo=me/small", f"--out={folder / 'pulled'}", token="")
    pulled = checkpoint.load(folder / "pulled" / "checkpoint-0.safetensors")
    saved = checkpoint.load(path)
    assert all((pulled.tensors[name] == array).all() for name, array in saved.tensors.items())


def test_a_repository_that_exists_is_written_only_when_told(served):
    fake, _, folder = served
    path = make_checkpoint(folder, "llama")
    fake.files["me/small"] = {"README.md": b"precious"}
    _, error = alpha(served, "push", f"--checkpoint={path}", "--repo=me/small", code=1)
    assert "--yes" in error
    assert fake.files["me/small"] == {"README.md": b"precious"}
    alpha(served, "push", f"--checkpoint={path}", "--repo=me/small", "--yes")
    assert "model.safetensors" in fake.files["me/small"]


def test_what_was_cut_off_goes_on_without_sending_again(served):
    fake, _, folder = served
    path = make_checkpoint(folder, "llama")
    fake.failures = [("/commit/", 400)]
    _, error = alpha(served, "push", f"--checkpoint={path}", "--repo=me/small", code=1)
    assert "400" in error
    assert sum(each.startswith("PUT") for each in fake.requests) == 1
    alpha(served, "push", f"--checkpoint={path}", "--repo=me/small", "--yes")
    assert sum(each.startswith("PUT") for each in fake.requests) == 1
    assert "model.safetensors" in fake.files["me/small"]


def test_errors_are_sentences(served):
    fake, _, folder = served
    path = make_checkpoint(folder, "llama")
    _, error = alpha(served, "pull", "--repo=me/none", "--out=x", code=1)
    assert "There is no repository me/none" in error
    _, error = alpha(served, "push", f"--checkpoint={path}", "--repo=a b", code=1)
    assert "not the name of a repository" in error
    _, error = alpha(served, "push", f"--checkpoint={path}", "--repo=me/small", code=1, token="hf_other")
    assert "hf auth whoami" in error
    _, error = alpha(served, "push", f"--checkpoint={path}", "--repo=me/small", code=1, token="")
    assert "hf auth" in error
    _, error = alpha(served, "pull", "--repo=me/x", "--out=x", code=1, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in error
    fake.files["me/old"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x02"}
    _, error = alpha(served, "pull", "--repo=me/old", "--out=x", code=1)
    assert "pytorch_model.bin" in error
    assert not (folder / "x").exists()


def test_a_model_of_others_is_pulled_without_its_pickles(served):
    fake, _, folder = served
    fake.files["me/gpt2"] = {**contents(golden_folder("gpt2", folder / "in")), "pytorch_model.bin": b"\x80\x02"}
    alpha(served, "pull", "--repo=me/gpt2", f"--out={folder / 'gpt2.safetensors'}")
    assert (folder / "gpt2.safetensors").is_file()
    assert not any("pytorch_model.bin" in each for each in fake.requests)


def test_a_space_is_a_folder_that_starts_alpha_serve(served):
    fake, _, folder = served
    path = make_checkpoint(folder, "llama")
    alpha(served, "space", f"--checkpoint={path}", f"--out={folder / 'space'}")
    dockerfile = (folder / "space" / "Dockerfile").read_text()
    command = json.loads(dockerfile.rpartition("CMD ")[2])
    assert tuple(command) == START
    assert "EXPOSE 7860" in dockerfile
    assert "--uid 1000" in dockerfile
    card = (folder / "space" / "README.md").read_text()
    assert card.startswith('---\ntitle: "space"\nsdk: docker\napp_port: 7860\n---')
    assert "numpy" in (folder / "space" / "requirements.txt").read_text()
    assert {path.name for path in installation.PACKAGE.glob("*.py")} <= {
        path.name for path in (folder / "space" / "alpha").iterdir()
    }
    # The copy of Alpha in the folder serves the checkpoint in the folder.
    start = [sys.executable, *command[1:], "--port=0"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
    with subprocess.Popen(start, cwd=folder / "space", env=environment, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[-1].removesuffix("/v1")
        try:
            for page in ("/", "/web/play.js"):
                with urllib.request.urlopen(address + page, timeout=60) as answer:
                    assert answer.status == 200
            with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as answer:
                (model,) = json.load(answer)["data"]
            body = json.dumps({"model": model["id"], "prompt": "The", "max_tokens": 2}).encode()
            # As the Hub's proxy passes on what the page asks for, under a name that the container does not know.
            headers = {"content-type": "application/json", "host": "me-space.hf.space"}
            headers |= {"origin": "https://me-space.hf.space", "sec-fetch-site": "same-origin"}
            sent = urllib.request.Request(f"{address}/v1/completions", body, headers)
            with urllib.request.urlopen(sent, timeout=60) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 2
        finally:
            process.terminate()
    alpha(served, "space", f"--checkpoint={path}", "--repo=me/space")
    assert fake.kinds == {"me/space": "space docker"}
    assert fake.files["me/space"]["Dockerfile"].decode() == dockerfile


def test_a_space_may_have_a_name_that_is_not_utf8(served):
    folder = served[2] / os.fsdecode(b"space\xff")
    alpha(served, "space", f"--checkpoint={make_checkpoint(served[2], 'llama')}", f"--out={folder}")
    assert (folder / "README.md").read_text().startswith('---\ntitle: "space\\udcff"\n')


def test_a_space_goes_to_one_place(served):
    path = make_checkpoint(served[2], "llama")
    alpha(served, "space", f"--checkpoint={path}", code=2)
    alpha(served, "space", f"--checkpoint={path}", "--repo=me/x", "--out=x", code=2)


def test_without_the_package_the_way_to_install_it_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    run("hub", "pull", "--repo=me/x", f"--out={tmp_path / 'x'}", code=1)
    assert "pip install" in capsys.readouterr().err
