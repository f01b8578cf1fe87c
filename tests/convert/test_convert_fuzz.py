"""Damaged and forged checkpoints by the hundred: each ends in a clear error or a conversion."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("cases", [170, pytest.param(510, marks=pytest.mark.slow)])
def test_mutated_checkpoints(cases, sentence_folder, tmp_path):
    """No crash, hang, leftover, large allocation or error without a place; the originals stay untouched."""
    seeds, work = tmp_path / "seeds", tmp_path / "work"
    work.mkdir()
    shutil.move(sentence_folder, seeds / "sentence")
    weights = load_file(seeds / "sentence" / "model.safetensors")
    for name in ("zip", "legacy", "sharded"):
        (seeds / name).mkdir()
        for file in ("config.json", "tokenizer.json"):
            shutil.copy(seeds / "sentence" / file, seeds / name)
    torch.save(weights, seeds / "zip" / "pytorch_model.bin")
    torch.save(weights, seeds / "legacy" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    save_file(weights, seeds / "sharded" / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (seeds / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    before = {path: path.read_bytes() for path in seeds.rglob("*") if path.is_file()}

    script = Path(__file__).with_name("fuzz_checkpoints.py")
    command = [sys.executable, str(script), str(seeds), str(work), str(cases)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["failures"] == []
    assert summary["converted"] + summary["refused"] == cases
    assert summary["converted"] > cases // 20
    assert summary["refused"] > cases // 4
    assert summary["growth_mib"] < 300
    assert {path: path.read_bytes() for path in seeds.rglob("*") if path.is_file()} == before
