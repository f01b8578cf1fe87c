"""The command line: teaching help on a bare Python, errors without traceback, interruption without leftovers."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convert.__main__ import main

ROOT = Path(__file__).parents[2]


def run(*arguments: str, python: tuple[str, ...] = (), **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options)


def test_help_on_a_bare_python():
    """Without site-packages: neither mlx nor numpy nor huggingface_hub can be imported."""
    bare = run("-c", "", python=("-S", "-c", "import numpy", "#"))
    assert bare.returncode != 0
    result = run("--help", python=("-S",))
    assert result.returncode == 0, result.stderr
    for word in ("examples:", "--hf-path", "--mlx-path", "--dtype", "--revision", "--q-mode", "--verify", "inspect"):
        assert word in result.stdout
    assert run("inspect", "--help", python=("-S",)).returncode == 0


def test_wrong_arguments_on_a_bare_python():
    for arguments, message in (
        ((), "no source: give a hub id or a folder"),
        (("a", "--hf-path", "b"), "two sources: a and b"),
        (("a", "--q-bits", "4"), "need -q"),
        (("a", "--dtype", "int4"), "invalid choice"),
        (("a", "--export", "--verify"), "--export goes with --output, --dtype and --upload-repo alone"),
    ):
        result = run(*arguments, python=("-S",))
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_converts(bert_folder, tmp_path):
    result = run("--hf-path", bert_folder, "--mlx-path", tmp_path / "out", "--dtype", "float16", "--verify")
    assert result.returncode == 0, result.stderr
    assert "bert: 39 tensors, float16" in result.stdout
    assert "verified: every tensor read back, outputs finite" in result.stdout
    assert f"written to {tmp_path / 'out'}" in result.stdout
    assert "writing" in result.stderr  # the progress bar
    again = run(bert_folder, "--output", tmp_path / "out")
    assert again.returncode == 2
    assert (
        again.stderr
        == f"error: [convert] {tmp_path / 'out'} exists already. Choose another folder or remove it first.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder"], "error: [hub] '/no/such/folder' is neither a folder that exists nor a hub id"),
        (["{bert}", "-q", "--q-mode", "mxfp4", "--q-bits", "8"], "error: [quantize] mode 'mxfp4' expects bits to be 4"),
        (["{bert}", "-q", "--q-bits", "0"], "error: [quantize] mode 'affine' expects bits"),
        (["{bert}", "--dequantize"], "error: [convert] --dequantize expects a quantised checkpoint"),
        (["{bert}", "--revision", "main"], "which has no revision 'main'"),
    ],
)
def test_user_errors(bert_folder, tmp_path, capsys, arguments, message):
    arguments = [argument.format(bert=bert_folder) for argument in arguments]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not (tmp_path / "out").exists()


def test_warning_is_one_line(bert_folder, tmp_path, capsys):
    assert main([str(bert_folder), "-q", "--q-bits", "4", "--quiet", "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("warning: [quantize] encoders lose quality below 8 bits")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_list(capsys):
    from mlx_bert.encoders import ENCODERS

    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(ENCODERS)
    assert any(line.startswith("bert") and "Devlin" in line for line in lines)


def test_inspect(bert_folder, capsys, edit_json):
    assert main(["inspect", str(bert_folder)]) == 0
    assert "would convert" in capsys.readouterr().out
    edit_json(bert_folder / "config.json", model_type="t5")
    assert main(["inspect", str(bert_folder)]) == 1
    assert "would not convert" in capsys.readouterr().out
    assert main(["inspect", "/no/such"]) == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(large_folder, tmp_path, number, status):
    arguments = [large_folder, "--output", tmp_path / "out", "--quiet", "-q"]
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    # a shell's background job ignores SIGINT, and so would what it starts
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*/.model.safetensors.*")) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        assert list(tmp_path.iterdir()), "the conversion never began to write"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert errors.endswith("interrupted: nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(large_folder, tmp_path):
    def no_file_above_a_megabyte():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = run(large_folder, "--output", tmp_path / "out", preexec_fn=no_file_above_a_megabyte)
    assert result.returncode == 2
    assert "error: [Errno 27] File too large" in result.stderr
    assert list(tmp_path.iterdir()) == []
