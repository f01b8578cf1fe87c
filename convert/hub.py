"""A hub id or a local path to a local folder. The only file of the project that opens a socket."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# The first file of the repository that is there decides the format; never two formats are downloaded.
WEIGHT_FORMATS = (
    ("model.safetensors", r"model\.safetensors"),
    ("model.safetensors.index.json", r"model[^/]*\.safetensors(\.index\.json)?"),
    ("pytorch_model.bin", r"pytorch_model\.bin"),
    ("pytorch_model.bin.index.json", r"pytorch_model[^/]*\.bin(\.index\.json)?"),
)
_REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_MODULE_FOLDER = re.compile(r"\d+_\w+")
_TOKENIZER = re.compile(r"tokenizer\.json|.*tokens[^/]*\.json|vocab\.(txt|json)|merges\.txt|[^/]*\.model", re.ASCII)
_CONFIG = re.compile(r"(config|tokenizer_config|modules|config_\w+|sentence_[\w-]+_config)\.json", re.ASCII)


def fetch(source: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or a hub repository's snapshot in the Hub's cache, with the needed files only.

    Args:
        source: folder, or hub id such as ``"sentence-transformers/all-MiniLM-L6-v2"``.
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: no such folder, repository or revision, no access, or no connection and not in the cache.
        ValueError: neither a path nor an id, or ``revision`` with a folder.
    """
    name = str(source)
    folder = Path(source).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise ValueError(f"[hub] {folder} is a folder, which has no revision {revision!r}. Leave --revision away.")
        return folder
    if name and folder.exists():
        raise ValueError(f"[hub] expected a folder or a hub id but {folder} is a file. Give the folder that holds it.")
    if not _REPO_ID.fullmatch(name) or name.startswith((".", "-")) or ".." in name or "--" in name:
        raise FileNotFoundError(f"[hub] {name!r} is neither a folder that exists nor a hub id (owner/name).")
    return _download(name, revision)


def select_files(files: Iterable[str]) -> list[str]:
    """Of a repository's files, those that a conversion reads: config, tokenizer, modules, and weights in one format."""
    by_folder: dict[str, list[str]] = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        by_folder.setdefault(folder, []).append(name)
    chosen = []
    for folder, names in by_folder.items():
        if folder and not _MODULE_FOLDER.fullmatch(folder):
            continue  # onnx/, openvino/ and the like
        pattern = next((pattern for marker, pattern in WEIGHT_FORMATS if marker in names), "(?!)")
        wanted = (name for name in names if _is_small(name) or re.fullmatch(pattern, name))
        chosen += [f"{folder}/{name}" if folder else name for name in wanted]
    return sorted(chosen)


def _is_small(name: str) -> bool:
    return bool(_TOKENIZER.fullmatch(name) or _CONFIG.fullmatch(name))


def _download(repo: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub import errors as hub_errors
    except ImportError:
        raise ImportError(f"[hub] {repo!r} is on the Hub, which needs huggingface-hub: pip install mlx-bert.") from None
    shown = f"{repo!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        files = [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or []]
        chosen = select_files(files)
        if "config.json" not in chosen and "0_Transformer/config.json" not in chosen:
            raise ValueError(f"[hub] {shown} has no config.json, so it is no transformers model. Choose another one.")
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[_literal(name) for name in chosen]))
    except hub_errors.GatedRepoError:
        raise FileNotFoundError(
            f"[hub] {shown} is gated. Accept its terms on https://huggingface.co/{repo}, then run `hf auth login`."
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise FileNotFoundError(f"[hub] {repo!r} has no revision {revision!r}. Give a branch, tag or commit.") from None
    except hub_errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"[hub] {shown} is neither a folder nor on the Hub (or it is private: run `hf auth login`). Check the name."
        ) from None
    except hub_errors.HFValidationError as error:
        raise ValueError(f"[hub] {repo!r} is not a hub id: {error}") from None
    except (OSError, hub_errors.HfHubHTTPError, *_network_errors()) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise  # the disk, not the network
        return _cached(repo, revision, shown, error)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the HTTP library beneath the Hub's client raises; which library depends on the client's version."""
    found: list[type[Exception]] = []
    for module, name in (("httpx2", "HTTPError"), ("httpx", "HTTPError"), ("requests", "RequestException")):
        try:
            found.append(getattr(__import__(module), name))
        except ImportError:
            continue
    return tuple(found)


def _cached(repo: str, revision: str | None, shown: str, error: Exception) -> Path:
    """Without a connection: what an earlier run left in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (OSError, HfHubHTTPError):
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"[hub] {shown} is neither a folder nor in the Hub's cache, and the Hub can't be reached: "
            f"{reason}. Check the name and the connection, or give a local folder."
        ) from None


def card_data(source: str | Path) -> dict[str, Any]:
    """The metadata of the model card of a folder or a hub id (licence, language, ...); empty without one."""
    from huggingface_hub import HfApi, ModelCard

    folder = Path(source).expanduser()
    if folder.is_dir():
        card = folder / "README.md"
        return ModelCard.load(card).data.to_dict() if card.is_file() else {}
    found = HfApi().model_info(str(source)).card_data
    return found.to_dict() if found else {}


def front_matter(**fields: Any) -> str:
    """The head of a model card in YAML, as the Hub reads it; fields that are None are left out."""
    from huggingface_hub import ModelCardData

    return ModelCardData(**fields).to_yaml()


def upload(folder: Path, repo: str) -> str:
    """Send a folder to the Hub, making the repository if need be.

    Args:
        folder: what to send.
        repo: hub id, ``owner/name``.

    Returns:
        The address of the model's page.

    Raises:
        ValueError: not a hub id.
        OSError: no connection, or no right to write there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo, re.ASCII):
        raise ValueError(f"[hub] expected a hub id owner/name to upload to but got {repo!r}.")
    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Convert with mlx-bert")
    except (HfHubHTTPError, *_network_errors()) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"[hub] {folder} could not be sent to {repo!r}: {reason} Log in with `hf auth login`.") from None
    return str(address)


def _literal(name: str) -> str:
    """A file name as a pattern that matches just this file."""
    return re.sub(r"([*?\[])", r"[\1]", name)
