"""Hugging Face's Hub, through the `huggingface_hub` package: sending a folder to a repository, fetching one.

Where the Hub is, who asks and where downloads are kept is the package's business: HF_ENDPOINT, HF_TOKEN, HF_HOME, and
`hf auth login`. Alpha sees no token. Files that are there already are not sent or fetched again, so what was cut off
goes on when it is asked for once more. The package is an optional one, and imported when it is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from alpha import __version__
from alpha.errors import AlphaError
from alpha.installation import missing_package
from alpha.safetensors_file import PICKLE_SUFFIXES

FETCHED = ("*.json", "*.safetensors", "*.jinja", "README.md")
"""The files of a model that importing reads."""


def push(folder: Path, repo: str, kind: str, private: bool, may_exist: bool) -> str:
    """Send a folder to a repository, which is made; returns its address. `kind` is "model" or "space".

    Raises AlphaError when there is such a repository and it may not exist, or when the Hub or the network refuses.
    """
    package = _package()
    with _errors(package, repo):
        api = package.HfApi(library_name="alpha", library_version=__version__)
        sdk = "docker" if kind == "space" else None
        try:
            api.create_repo(repo, repo_type=kind, private=private, space_sdk=sdk)
        except package.errors.HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            if not may_exist:
                raise AlphaError(
                    f"There is a repository {repo} already; --yes replaces its files by these, or name another one."
                ) from error
        message = f"Upload from Alpha {__version__}"
        api.upload_folder(repo_id=repo, repo_type=kind, folder_path=str(folder), commit_message=message)
        prefix = "spaces/" if kind == "space" else ""
        return f"{api.endpoint}/{prefix}{repo}"


def pull(repo: str) -> Path:
    """The folder of a model, fetched into the package's cache. Raises AlphaError as `push` does, and for pickles."""
    package = _package()
    with _errors(package, repo):
        api = package.HfApi(library_name="alpha", library_version=__version__)
        names = [each.rfilename for each in api.model_info(repo).siblings or []]
        pickles = sorted(name for name in names if Path(name).suffix in PICKLE_SUFFIXES)
        if pickles and not any(name.endswith(".safetensors") for name in names):
            raise AlphaError(
                f"{repo} has its weights as pickles only ({pickles[0]}), which can run code when they are opened, so "
                "Alpha does not. The Hub converts a model at huggingface.co/spaces/safetensors/convert."
            )
        return Path(api.snapshot_download(repo, allow_patterns=list(FETCHED)))


def _package() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise missing_package("alpha hub", "huggingface_hub", "hub") from error
    return huggingface_hub


@contextmanager
def _errors(package: ModuleType, repo: str) -> Iterator[None]:
    """What the package raises, as AlphaError with one sentence."""
    errors = package.errors
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise AlphaError("Nobody is logged in to the Hub; run `hf auth login`, or set HF_TOKEN.") from error
    except errors.GatedRepoError as error:
        raise AlphaError(
            f"{repo} asks for its terms to be accepted on its page, by whom you are logged in as."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise AlphaError(
            f"There is no repository {repo} that may be seen; check its name, and who is logged in (`hf auth whoami`)."
        ) from error
    except errors.HFValidationError as error:
        raise AlphaError(f"--repo={repo} is not the name of a repository, such as user/model: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AlphaError(
                f"The Hub does not let you write {repo}; `hf auth whoami` says who is logged in."
            ) from error
        raise AlphaError(f"The Hub refused with status {status}: {_first_line(error)}") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise AlphaError(f"The Hub cannot be reached ({_first_line(error)}); try again, and it goes on.") from error
    except OSError as error:
        raise AlphaError(f"{repo} cannot be exchanged with the Hub: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
