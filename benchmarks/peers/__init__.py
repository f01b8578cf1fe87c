"""Other engines to compare with, each a script that runs in the Python of a virtual environment of its own.

``PYTHON benchmarks/peers/NAME.py --model FOLDER --texts FILE.json --out FILE.npy [--batch-size N] [--max-length N]
[--sort] [--onnx FILE]``

``FILE.json`` holds a list: of strings, or of rows of token ids, all of one length, for a fixed shape (no tokenizer is
used then). The script talks in lines of JSON:

1. It loads the model, encodes everything once, writes the embeddings, in the order of the texts, to ``FILE.npy``
   (float32 ``(N, D)``), and prints ``{"ready": true, "engine": ..., "version": ..., "device": ..., "blas": ...}``.
2. For each line ``encode`` on standard input it encodes everything again, tokenising included, and prints
   ``{"seconds": ..., "cpu_seconds": ...}``: of the wall clock, and of all the process's threads.
3. It ends with the end of its input, at once, even while it computes: whoever asked is gone. An error is printed as
   ``{"error": ...}``, and the exit code is 1.

What libraries print goes to standard error. Threads are limited with OPENBLAS_NUM_THREADS and OMP_NUM_THREADS.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def mlx() -> str:
    """MLX for ``pip install``: on Linux with the backend that is installed here, without which it does not run."""
    for extra, package in (("cuda13", "mlx-cuda-13"), ("cuda12", "mlx-cuda-12"), ("cpu", "mlx-cpu")):
        try:
            version(package)
        except PackageNotFoundError:
            continue
        return f"mlx[{extra}]"
    return "mlx[cpu]" if sys.platform == "linux" else "mlx"


FOLDER = Path(__file__).parent

# Engine -> what ``pip install`` needs in its environment.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "sentence_transformers": ("sentence-transformers",),
    "mlx_embeddings": ("mlx-embeddings", mlx(), "numpy"),
    "mlx_vlm": ("mlx-vlm", mlx(), "numpy"),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript", "torch", "transformers"),
}
