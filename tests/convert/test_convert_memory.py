"""Memory stays bounded by the tensors, not by the checkpoint, from every format and to every type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import write_zeros

ROOT = Path(__file__).parents[2]
MEASURE = """
import json, sys
import mlx_bert
import convert.conversion, convert.quantize
import mlx.core as mx

def peak():  # not ru_maxrss, which begins at the peak of the process that started this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

mx.eval(mx.quantize(mx.ones((64, 64))))  # what a first use costs anyway
before = peak()
report = convert.conversion.convert_checkpoint(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
print(json.dumps([(peak() - before) / 1024, report.bytes_before / 2**20]))
"""
SIZES = {"hidden_size": 512, "num_hidden_layers": 15, "intermediate_size": 2048, "vocab_size": 500}
TWO_GB = {"hidden_size": 1024, "num_hidden_layers": 42, "intermediate_size": 4096, "vocab_size": 1000}
CASES = [
    ("safetensors", {}),
    ("safetensors", {"dtype": "float16"}),
    ("safetensors", {"quantization": {"mode": "affine"}}),
    ("bin", {"dtype": "bfloat16"}),
    ("legacy", {"quantization": {"mode": "mxfp8"}}),
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def growth(source: Path, output: Path, options: dict) -> tuple[float, float]:
    """MiB of memory that a conversion needs above a process that is ready for it, and MiB of its tensors."""
    command = [sys.executable, "-c", MEASURE, str(source), str(output), json.dumps(options)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    return json.loads(result.stdout)


@linux
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_memory_is_bounded_by_tensors(large_folder, tmp_path, kind, options):
    source = large_folder
    if kind != "safetensors":
        source = tmp_path / "in"
        source.mkdir()
        write_zeros(source, kind, **SIZES)
    more, size = growth(source, tmp_path / "out", options)
    assert size > 180
    assert more < 40, f"{more:.0f} MiB more while converting {size:.0f} MiB"


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_two_gigabytes_in_shards(tmp_path, kind, options):
    source = tmp_path / "in"
    source.mkdir()
    write_zeros(source, kind, shards=4, **TWO_GB)
    more, size = growth(source, tmp_path / "out", options)
    assert size > 2000
    assert more < 200, f"{more:.0f} MiB more while converting {size:.0f} MiB"
