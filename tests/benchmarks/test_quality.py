"""The parity report: it finds no difference where there is none, and one where there is."""

import argparse

import pytest

from benchmarks import quality
from mlx_bert.encoders import bert


def test_one_architecture_with_all_its_heads():
    result = quality.main(argparse.Namespace(only=["bert"], against="transformers"))
    assert [row["task"] for row in result["rows"]] == ["encoder", *quality.SUFFIXES]
    for row in result["rows"]:
        assert row["float32"] < 1e-4
        assert row["float32"] < row["float16"] < 0.1
        assert row["float16"] < row["bfloat16"] < 1


def test_a_broken_encoder_shows(monkeypatch):
    monkeypatch.setattr(bert.Pooler, "__call__", lambda self, state: state)
    monkeypatch.setattr(bert.MLP, "__call__", lambda self, x: self.down(self.up(x)))
    assert quality.compare("bert", "token_classification")["float32"] > 0.01


def test_float16_is_left_out_where_an_architecture_refuses_it():
    found = quality.compare("gemma3_text", quality.BASE)
    assert found["float16"] is None
    assert found["float32"] < 1e-4


def test_an_unknown_architecture():
    with pytest.raises(ValueError, match="'gpt2' is no architecture"):
        quality.main(argparse.Namespace(only=["gpt2"], against="transformers"))
