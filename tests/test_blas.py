"""The fast BLAS, each case in a process of its own: it can be chosen only before mlx is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_bert import blas

linux = pytest.mark.skipif(sys.platform != "linux", reason="numpy's OpenBLAS takes part on Linux only")
with_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

# Prints what was chosen, whether the shim is loaded, and how far the matrix products are from numpy's in float64.
PROBE = """
import json, sys
{before}
import mlx_bert
import numpy as np
import mlx.core as mx
mx.set_default_device(mx.cpu)
random = np.random.default_rng(0)
errors = {{}}
for kind in ("float32", "complex64"):
    a, b = (random.standard_normal(shape) for shape in ((3, 33, 65), (3, 65, 17)))
    if kind == "complex64":
        a, b = (x + 1j * random.standard_normal(x.shape) for x in (a, b))
    x, y = mx.array(a.astype(kind)), mx.array(b.astype(kind))
    wanted = a @ b
    # An operand stored by columns reaches the BLAS as a transposed one.
    columns = lambda z: mx.swapaxes(mx.contiguous(mx.swapaxes(z, 1, 2)), 1, 2)
    products = {{"plain": x @ y, "left": columns(x) @ y, "right": x @ columns(y)}}
    if kind == "float32":
        products["addmm"] = mx.addmm(mx.zeros((17,)), x[0], y[0])[None]
    for name, product in products.items():
        errors[kind + " " + name] = float(np.abs(np.array(product) - wanted[: len(product)]).max())
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print(json.dumps({{"backend": mlx_bert.blas_backend, "shim": "mlx-bert-blas-" in maps, "errors": errors}}))
"""


def probe(tmp_path: Path, before: str = "", **environment: str) -> tuple[dict[str, Any], str]:
    """Run the probe with its own temporary folder, so that no shim of another run is found."""
    env = {key: value for key, value in os.environ.items() if key != blas.SWITCH}
    env |= {"TMPDIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", PROBE.format(before=before)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def assert_products_are_right(found: dict[str, Any]) -> None:
    assert len(found["errors"]) == 7
    assert max(found["errors"].values()) < 1e-4, found["errors"]


@linux
@with_compiler
def test_importing_the_package_routes_matrix_products_to_openblas(tmp_path: Path) -> None:
    found, stderr = probe(tmp_path)
    assert found["backend"] == "openblas"
    assert found["shim"]
    assert stderr == ""
    assert_products_are_right(found)


@linux
@with_compiler
def test_the_shim_is_compiled_once(tmp_path: Path) -> None:
    probe(tmp_path)
    (shim,) = tmp_path.glob("mlx-bert-blas-*/*.so")
    built = shim.stat().st_mtime_ns
    found, _ = probe(tmp_path, PATH="")  # no compiler this time: the file of the first run serves
    assert found["backend"] == "openblas"
    assert shim.stat().st_mtime_ns == built


@linux
@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_a_variable_switches_it_off(tmp_path: Path, value: str) -> None:
    found, _ = probe(tmp_path, **{blas.SWITCH: value})
    assert found["backend"] == "off"
    assert not found["shim"]
    assert_products_are_right(found)


@linux
def test_without_a_compiler_mlx_runs_as_installed_and_nothing_is_said(tmp_path: Path) -> None:
    found, stderr = probe(tmp_path, PATH="")
    assert found["backend"] == "reference"
    assert not found["shim"]
    assert stderr == ""
    assert_products_are_right(found)


@linux
def test_it_is_too_late_once_mlx_is_imported(tmp_path: Path) -> None:
    found, _ = probe(tmp_path, before="import mlx.core")
    assert found["backend"] == "late"
    assert not found["shim"]
    assert_products_are_right(found)


@linux
@with_compiler
def test_one_log_line_says_what_is_used(tmp_path: Path) -> None:
    _, stderr = probe(tmp_path, before="import logging; logging.basicConfig(level='INFO')")
    lines = [line for line in stderr.splitlines() if "mlx_bert" in line]
    assert len(lines) == 1
    assert "openblas" in lines[0].lower()


@linux
def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / f"mlx-bert-blas-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    found, _ = probe(tmp_path)
    assert found["backend"] == "reference"
    assert list(folder.iterdir()) == []


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.enable() == "native"


def test_numpy_without_its_own_openblas_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(blas.SWITCH, raising=False)
    monkeypatch.setattr(sys, "modules", {key: value for key, value in sys.modules.items() if key != "mlx.core"})
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    assert blas.enable() == "reference"


@linux
@with_compiler
def test_scipy_keeps_an_openblas_of_its_own(tmp_path: Path) -> None:
    # through a shim linked to numpy's OpenBLAS, scipy's, of other integers, got the inner functions of that one
    pytest.importorskip("scipy")
    code = "import mlx_bert, numpy, scipy.linalg; assert mlx_bert.blas_backend == 'openblas'\n"
    code += "for kind in ('float32', 'float64'): scipy.linalg.svd(numpy.eye(9, dtype=kind))"
    env = {key: value for key, value in os.environ.items() if key != blas.SWITCH} | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
