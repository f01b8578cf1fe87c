"""Inspection says what a checkpoint is and what stands in the way, and converts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import tiny_config
from transformers import BertForSequenceClassification

from convert import Quantization, convert
from convert.inspection import inspect_checkpoint
from reference import redraw


def test_sentence_transformer(sentence_folder):
    before = sorted(Path(sentence_folder).rglob("*"))
    findings = inspect_checkpoint(sentence_folder)
    assert findings.converts
    assert findings.facts["modules"] == "Transformer, Pooling, Dense, Normalize"
    assert findings.facts["model_type"] == "bert"
    assert findings.facts["encoder"] == "39 tensors, complete"
    assert findings.facts["pooler"] == "yes"
    assert findings.facts["weights"].startswith("float32 0.")
    assert sorted(Path(sentence_folder).rglob("*")) == before


def test_classifier(tmp_path):
    redraw(BertForSequenceClassification(tiny_config(id2label={0: "no", 1: "yes"}))).save_pretrained(tmp_path)
    facts = inspect_checkpoint(tmp_path).facts
    assert facts["class"] == "BertForSequenceClassification"
    assert facts["head"] == "classifier"
    assert facts["labels"] == "no, yes"
    assert facts["tokenizer"] == "none"


def test_quantised(bert_folder, tmp_path):
    findings = inspect_checkpoint(convert(bert_folder, tmp_path / "out", quantization=Quantization()))
    assert findings.converts
    assert "--dequantize" in findings.facts["note"]
    assert "uint32" in findings.facts["weights"]


def test_tokenizer_to_build(bert_folder):
    assert inspect_checkpoint(bert_folder).facts["tokenizer"] == "vocab.txt (tokenizer.json would be built from it)"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), "does not exist"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "is not a valid safetensors file"),
        (
            lambda folder: (folder / "modules.json").write_text('[{"type": "x.Y", "path": ""}]'),
            "'x.Y' is not supported",
        ),
    ],
)
def test_problems(bert_folder, damage, message):
    damage(bert_folder)
    findings = inspect_checkpoint(bert_folder)
    assert not findings.converts
    assert any(message in problem for problem in findings.problems)
    assert str(findings).endswith("would not convert")
