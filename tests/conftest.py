"""Shared fixtures. One thread per BLAS call: spinning threads slow a busy machine down by 5x."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLX_ENABLE_TF32", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import mlx_bert  # noqa: E402, F401  (enables the fast BLAS before mlx is imported)
