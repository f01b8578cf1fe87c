"""The command line: teaching help on a bare Python, errors without traceback, interruption without leftovers."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_checkpoints import tiny_config

from convert.__main__ import main
from mlx_bert.checkpoint import TensorEntry, write_json, write_safetensors

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


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory) -> Path:
    """A BERT of 190 MB in small tensors, zeros: long enough to be interrupted, too large for a small disk."""
    folder = tmp_path_factory.mktemp("large")
    config = tiny_config(hidden_size=512, num_hidden_layers=15, intermediate_size=2048, vocab_size=500)
    write_json(folder / "config.json", config.to_dict())
    from mlx.utils import tree_flatten

    from mlx_bert.encoders import bert

    model = bert.Model(bert.Config.from_dict(config.to_dict()))
    shapes = bert.NAMES.to_disk(dict(tree_flatten(model.parameters())))
    entries = [
        TensorEntry(name, array.shape, mx.float32, lambda shape=array.shape: mx.zeros(shape))
        for name, array in shapes.items()
    ]
    write_safetensors(folder / "model.safetensors", entries)
    return folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(large_folder, tmp_path, number, status):
    arguments = [large_folder, "--output", tmp_path / "out", "--quiet", "-q"]
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
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


MEASURE = """
import json, sys
import mlx_bert
import convert.conversion, convert.quantize
import mlx.core as mx
options = json.loads(sys.argv[3])

def peak():  # not ru_maxrss, which begins at the peak of the process that started this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

mx.eval(mx.quantize(mx.ones((64, 64))))  # what a first use costs anyway
before = peak()
report = convert.conversion.convert_checkpoint(sys.argv[1], sys.argv[2], **options)
print(json.dumps([(peak() - before) / 1024, report.bytes_before / 2**20]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("safetensors", {}),
        ("safetensors", {"dtype": "float16"}),
        ("safetensors", {"quantization": {"mode": "affine"}}),
        ("bin", {"dtype": "bfloat16"}),
        ("legacy", {"quantization": {"mode": "mxfp8"}}),
    ],
)
def test_memory_is_bounded_by_tensors(large_folder, tmp_path, source, options):
    import json

    import torch
    from safetensors.torch import load_file

    folder = large_folder
    if source != "safetensors":
        folder = tmp_path / "in"
        folder.mkdir()
        os.link(large_folder / "config.json", folder / "config.json")
        weights = load_file(large_folder / "model.safetensors")
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=source == "bin")
        del weights
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out"), json.dumps(options)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    growth, size = json.loads(result.stdout)
    assert size > 180
    assert growth < 40, f"{growth:.0f} MiB more while converting {size:.0f} MiB"
