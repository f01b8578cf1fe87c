"""Peak memory of the converter above a process that is ready for it: bounded by a tensor, not by the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_bert.checkpoint import CONFIG, WEIGHTS, TensorEntry, write_json, write_safetensors
from mlx_bert.core import BertCore

WAYS = {
    "as stored": {},
    "to float16": {"dtype": "float16"},
    "to 8 bits": {"quantization": {"mode": "affine"}},
}
LAYER_MB = 50.4  # of a layer 1024 wide in float32
MEASURE = """
import json, sys
import mlx_bert
import convert.conversion, convert.quantize
import mlx.core as mx
import resource

def peak():  # MB; ru_maxrss would begin at the peak of the process that started this one
    try:
        lines = open("/proc/self/status").read().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS

mx.eval(mx.quantize(mx.ones((64, 64))))  # what a first use costs anyway
before = peak()
report = convert.conversion.convert_checkpoint(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
print(json.dumps([peak() - before, report.bytes_before / 1e6, report.bytes_after / 1e6]))
"""


def measure(size_mb: int) -> list[dict[str, Any]]:
    """Convert a made-up BERT of about this size in each way, in processes of their own."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        source.mkdir()
        write_checkpoint(source, max(1, round(size_mb / LAYER_MB)))
        for number, (way, options) in enumerate(WAYS.items()):
            command = [sys.executable, "-c", MEASURE, str(source), str(Path(place) / str(number)), json.dumps(options)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            growth, before, after = json.loads(done.stdout.splitlines()[-1])
            rows.append({"converting": way, "source MB": before, "result MB": after, "growth MB": growth})
    return rows


def write_checkpoint(folder: Path, layers: int) -> None:
    """A BERT 1024 wide with made-up weights, written one tensor at a time."""
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "vocab_size": 1000}
    config = {"model_type": "bert", **sizes, "num_hidden_layers": layers}
    weights = BertCore(config).weights_on_disk()  # not evaluated: only names and shapes are used
    entries = [
        TensorEntry(name, array.shape, mx.float32, lambda shape=array.shape: 0.02 * mx.random.normal(shape))
        for name, array in weights.items()
    ]
    write_safetensors(folder / WEIGHTS, entries)
    write_json(folder / CONFIG, config)
