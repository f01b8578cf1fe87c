"""Starts a peer in the Python of its own environment, made on first use, and asks it to encode."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import FOLDER, REQUIREMENTS
from mlx_bert.inference.fingerprint import fingerprint

PATIENCE = 5  # seconds until a peer that does not end with its input is killed
HOME_VARIABLE = "MLX_BERT_PEERS"  # where the environments are, if not in the user's cache
# Name on the command line -> the script and its options.
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sentence-transformers": ("sentence_transformers", ()),
    "mlx-embeddings": ("mlx_embeddings", ()),
    "mlx-embeddings, sorted by its caller": ("mlx_embeddings", ("--sort",)),
    "mlx-vlm, sorted by its caller": ("mlx_vlm", ("--sort",)),
    "onnxruntime": ("onnxruntime", ()),
}
CHOICES = ("sentence-transformers", "mlx-embeddings", "mlx-vlm", "onnxruntime")


def home() -> Path:
    """The folder of the peers' environments and exported models."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlx-bert" / "peers"
    return Path(os.environ.get(HOME_VARIABLE, default))


def python_of(script: str, install: bool) -> str | None:
    """A Python that can run a peer: this one if it has the library, else that of the peer's environment.

    Args:
        script: a key of ``REQUIREMENTS``.
        install: make the environment if it is not there.

    Returns:
        The interpreter's path; None if there is none and ``install`` is False.

    Raises:
        ImportError: the installation failed.
    """
    modules = [re.match(r"[\w-]+", name)[0].replace("-", "_") for name in REQUIREMENTS[script]]
    if all(find_spec(module) is not None for module in modules):
        return sys.executable
    folder = home() / script
    python = folder / "bin" / "python"
    complete, wanted = folder / "complete", "\n".join(REQUIREMENTS[script])
    if complete.is_file() and complete.read_text(encoding="utf-8") == wanted:
        return str(python)
    if not install:
        return None
    print(f"Installing {', '.join(REQUIREMENTS[script])} into {folder} (once)", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[script]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise ImportError(f"[benchmarks] {script} could not be installed: {last}")
    complete.write_text(wanted, encoding="utf-8")
    return str(python)


class Peer:
    """A running peer that has encoded everything once.

    Args:
        name: a key of ``PEERS``.
        python: see :func:`python_of`.
        model: folder.
        inputs: texts, or rows of token ids of one length.
        batch_size: texts per batch.

    Attributes:
        embeddings: ``(N, D)`` float32, of the first run.
        about: engine, version, device and what else the peer says of itself.

    Raises:
        ValueError: the peer failed; with its message.
    """

    def __init__(self, name: str, python: str, model: str, inputs: Sequence[Any], batch_size: int) -> None:
        script, options = PEERS[name]
        self.name = name
        with tempfile.TemporaryDirectory() as folder:
            texts, out = Path(folder) / "texts.json", Path(folder) / "out.npy"
            texts.write_text(json.dumps(list(inputs)), encoding="utf-8")
            command = [python, str(FOLDER / f"{script}.py"), "--model", model, "--texts", str(texts), "--out", str(out)]
            command += ["--batch-size", str(batch_size), *options]
            if script == "onnxruntime":
                command += ["--onnx", str(home() / "models" / f"{fingerprint(model)[:16]}.onnx")]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            try:
                self.about = self._answer()
                self.embeddings = np.load(out)
            except BaseException:  # also Ctrl-C
                self.close()
                raise

    def __call__(self) -> float:
        """Encode everything again. Returns the seconds that the peer took."""
        self._process.stdin.write("encode\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the peer, whatever it does. (It also ends by itself when this process is killed: its input ends then.)"""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with {self._process.wait()}"}
        if "error" in answer:
            raise ValueError(f"[benchmarks] {self.name} failed: {answer['error']}")
        return answer
