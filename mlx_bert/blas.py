"""Fast matrix multiplication for MLX's CPU backend on Linux.

The ``mlx[cpu]`` wheels link netlib's reference BLAS, about thirty times slower than a tuned one. numpy ships OpenBLAS
under prefixed names (``scipy_cblas_sgemm64_``). A three-function shim with the standard CBLAS names, opened with
``RTLD_GLOBAL`` before ``mlx.core`` is loaded, takes the place of the reference library. Nothing happens on macOS, nor
without numpy's OpenBLAS or a C compiler: MLX then runs as installed.

Set ``MLX_BERT_FAST_BLAS=0`` to switch it off.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("mlx_bert")

SWITCH = "MLX_BERT_FAST_BLAS"

_PRODUCTS = ("sgemm", "dgemm", "cgemm")
# The shim is not linked to OpenBLAS: that would open it to all that is loaded later, and scipy's own OpenBLAS, of other
# integers, would take its inner functions for its own. It is told where the three functions are.
_SHIM = r"""
typedef long I;
typedef void S(int,int,int,I,I,I,float,const float*,I,const float*,I,float,float*,I);
typedef void D(int,int,int,I,I,I,double,const double*,I,const double*,I,double,double*,I);
typedef void C(int,int,int,I,I,I,const void*,const void*,I,const void*,I,const void*,void*,I);
static S* s; static D* d; static C* z;
void mlx_bert_use(S* sgemm, D* dgemm, C* cgemm) { s = sgemm; d = dgemm; z = cgemm; }
void cblas_sgemm(int o, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  s(o, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void cblas_dgemm(int o, int ta, int tb, int m, int n, int k, double alpha, const double* a, int lda,
                 const double* b, int ldb, double beta, double* c, int ldc) {
  d(o, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void cblas_cgemm(int o, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int lda,
                 const void* b, int ldb, const void* beta, void* c, int ldc) {
  z(o, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
"""


def _openblas() -> Path | None:
    """numpy's bundled OpenBLAS, found without importing numpy."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or not spec.origin:
        return None
    bundled = Path(spec.origin).parent.parent / "numpy.libs"
    return next(iter(sorted(bundled.glob("libscipy_openblas64*.so"))), None)


def _build_shim() -> Path:
    """Compile the shim once per user; later processes reuse the file."""
    folder = Path(tempfile.gettempdir()) / f"mlx-bert-blas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"{folder} belongs to or is writable by somebody else")
    shim = folder / (hashlib.sha256(_SHIM.encode()).hexdigest()[:16] + ".so")
    if not shim.exists():
        partial = shim.with_suffix(f".{os.getpid()}")
        command = ["cc", "-O2", "-fPIC", "-shared", "-x", "c", "-", "-o", str(partial)]
        subprocess.run(command, input=_SHIM.encode(), check=True, capture_output=True)
        os.replace(partial, shim)
    return shim


def enable() -> str:
    """Route MLX's CPU matrix products to numpy's OpenBLAS. Call before ``mlx.core`` is imported.

    Returns:
        ``"native"`` (not Linux), ``"off"`` (switched off), ``"late"`` (mlx was already imported),
        ``"openblas"`` (in effect) or ``"reference"`` (no OpenBLAS or compiler found).
    """
    if sys.platform != "linux":
        return "native"
    if os.environ.get(SWITCH, "1").lower() in {"0", "off", "false", "no"}:
        return "off"
    if "mlx.core" in sys.modules:
        return "late"
    openblas = _openblas()
    if openblas is None:
        return "reference"
    try:
        library = ctypes.CDLL(str(openblas))
        products = [getattr(library, f"scipy_cblas_{name}64_") for name in _PRODUCTS]
        shim = ctypes.CDLL(str(_build_shim()), mode=ctypes.RTLD_GLOBAL)
        shim.mlx_bert_use(*(ctypes.cast(product, ctypes.c_void_p) for product in products))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        logger.info("MLX keeps its reference BLAS on this machine: %s", error)
        return "reference"
    logger.info("MLX's CPU matrix products run on %s", openblas.name)
    return "openblas"


_lock = threading.Lock()
_users, _threads_before = 0, 1


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for each product while several CPU streams multiply at a time, lest they wait for each other.

    Concerns OpenBLAS alone, and numpy with it. The last of several users puts the number of threads back.
    """
    global _users, _threads_before
    openblas = _openblas() if sys.platform == "linux" else None
    if openblas is None:
        yield
        return
    library = ctypes.CDLL(str(openblas))  # the one that numpy and the shim have open
    with _lock:
        if _users == 0:
            _threads_before = library.scipy_openblas_get_num_threads64_()
            library.scipy_openblas_set_num_threads64_(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                library.scipy_openblas_set_num_threads64_(_threads_before)
