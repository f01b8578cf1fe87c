"""What tells one model from another: a hash of the files that decide its embeddings."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlx_bert.inference.settings import read_module_list

KINDS = (".json", ".safetensors", ".txt", ".model")


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over names and contents of a model folder's weights, configs, tokenizer and modules.

    Args:
        folder: a folder as :func:`mlx_bert.checkpoint.ready_folder` gives it.

    Returns:
        64 hexadecimal digits. Files that do not change an embedding, such as a model card, do not count.
    """
    folder = Path(folder)
    backbone, listed = read_module_list(folder)
    digest = hashlib.sha256()
    for part in dict.fromkeys([folder, backbone, *(path for _, path in listed or [])]):
        for path in sorted(part.iterdir()) if part.is_dir() else []:
            if path.suffix in KINDS and path.is_file():
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
