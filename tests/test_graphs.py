"""Encoders as compiled graphs: the same numbers, few graphs, for every architecture, on several threads."""

import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks import memory
from benchmarks.quality import OWN, TINY
from mlx_bert import graphs
from mlx_bert.core import BertCore
from mlx_bert.encoders import ENCODERS
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.pipelines import pipeline
from mlx_bert.task_model import TaskModel
from mlx_bert.tokenizer import Tokenizer

JINA = {"position_embedding_type": "alibi", "feed_forward_type": "geglu"}
CONFIGS = {
    **{name: OWN.get(name, {}) for name in ENCODERS if name not in ("mlx_lm", "jina_bert")},
    "jina_bert": {"model_type": "bert", "architectures": ["JinaBertModel"], **JINA},
}


def tiny(name="bert"):
    mx.random.seed(0)
    core = BertCore({"model_type": name, **TINY, **CONFIGS[name]}, compute_additional_pooling=False)
    return core.eval()


def batch(rows, length, padded=True):
    ids = mx.array(np.random.default_rng(rows).integers(5, TINY["vocab_size"], (rows, length)).astype(np.int32))
    return ids, mx.arange(length)[None] < length - mx.arange(rows)[:, None] if padded else None


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_gives_the_same(name):
    core = tiny(name)
    batches = [batch(2, 9), batch(2, 9, padded=False), batch(1, 16), batch(3, 24)]
    expected = [np.array(core(*each).last_hidden_state) for each in batches]
    core.compile_graphs(True)
    for _ in range(3):
        for each, wanted in zip(batches, expected, strict=True):
            output = core(*each)
            np.testing.assert_allclose(np.array(output.last_hidden_state), wanted, atol=1e-5)
            assert np.isfinite(np.array(output.pooler_output)).all()
    assert len(core._graphs.shapes) == len(batches)
    core.compile_graphs(False)  # nothing of a graph stays behind in the encoder
    for each, wanted in zip(batches, expected, strict=True):
        np.testing.assert_allclose(np.array(core(*each).last_hidden_state), wanted, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_product_projects_queries_keys_and_values(name):
    """And one makes both halves of a gated MLP: names of layers that read the same input."""
    names = [path.rpartition(".")[2] for path, module in tiny(name).named_modules() if isinstance(module, nn.Linear)]
    assert "qkv" in names
    assert not {"q", "k", "v", "query", "key", "value", "gate_proj", "up_proj", "wi_0", "wi_1"} & set(names)
    assert sum(name in ("up", "gate_up", "up_gate") for name in names) == names.count("qkv")


class Counted(nn.Module):
    """An encoder that counts how often Python runs it."""

    def __init__(self, encoder):
        super().__init__()
        self.inner = encoder
        self.calls = 0

    def __call__(self, *arrays):
        self.calls += 1
        return self.inner(*arrays)


def test_shapes_that_come_again_are_compiled_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    monkeypatch.setattr(graphs, "REMEMBERED", 3)
    encoder = Counted(tiny().encoder)
    run = graphs.Graphs(encoder)

    def calls(*shapes):
        before = encoder.calls
        for shape in shapes:
            mx.eval(run(*batch(*shape), None).last_hidden_state)
        return encoder.calls - before

    assert calls((1, 8)) == 1  # as it is written
    assert calls((1, 8)) == 1  # compiled
    assert calls((1, 8), (1, 8)) == 0
    assert calls((2, 8), (3, 8), (4, 8), (5, 8)) == 4  # the last one is too many to remember: all are forgotten
    assert calls((2, 8)) == 1
    assert len(run.shapes) == 1
    assert calls((2, 8)) == 1
    assert len(run.shapes) == 2
    assert calls((2, 8), (1, 8)) == 0
    assert calls((6, 8), (6, 8), (6, 8)) == 3  # there are as many as may be


def test_weights_and_types_may_change():
    core = tiny().compile_graphs(True)
    ids, mask = batch(2, 8)
    for _ in range(3):
        before = core(ids, mask).last_hidden_state
    mx.eval(before)
    core.encoder.layers[0].mlp.up.weight = 1.5 * core.encoder.layers[0].mlp.up.weight
    after = core(ids, mask).last_hidden_state
    assert mx.max(mx.abs(after - before)).item() > 1e-3
    core.compile_graphs(False)
    np.testing.assert_allclose(np.array(core(ids, mask).last_hidden_state), np.array(after), atol=1e-5)
    core.compile_graphs(True).set_dtype(mx.bfloat16)
    assert [core(ids, mask).last_hidden_state.dtype for _ in range(3)] == [mx.bfloat16] * 3


def test_training_and_more_than_the_last_state_run_as_written():
    core = tiny().compile_graphs(True)
    ids, mask = batch(2, 8)
    core.train()
    first, second = (core(ids, mask).last_hidden_state for _ in range(2))
    assert mx.max(mx.abs(first - second)).item() > 1e-3  # dropout is drawn anew
    core.eval()
    for _ in range(3):
        output = core(ids, mask, output_hidden_states=True, output_attentions=True)
        assert len(output.hidden_states) == 3
        assert len(output.attentions) == 2
        core(ids, mask, position_ids=mx.arange(8)[None])
    assert not core._graphs.shapes


def test_a_frozen_encoder_trains_a_head_in_a_compiled_step():
    """As after ``CrossEncoder(model)``, whose model is then trained without its encoder."""
    core, head = tiny(), nn.Linear(TINY["hidden_size"], 1)
    ids, mask = batch(2, 8)

    def loss(head):
        return mx.mean(mx.square(head(core(ids, mask).last_hidden_state)))

    expected = nn.value_and_grad(head, loss)(head)[1]
    core.compile_graphs(True)
    state = [core.state, head.state]
    step = mx.compile(lambda: nn.value_and_grad(head, loss)(head)[1], inputs=state, outputs=state)
    for _ in range(2):
        loss(head)  # the second time makes a graph, which then is part of the step
    for _ in range(3):
        np.testing.assert_allclose(np.array(step()["weight"]), np.array(expected["weight"]), atol=1e-5)
    gradients = nn.value_and_grad(core, lambda core: loss(head))(core)[1]
    assert mx.max(mx.abs(gradients["encoder"]["embeddings"]["word"]["weight"])).item() > 0


def test_gpus_compile_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv(graphs.SWITCH, raising=False)
    assert graphs.wanted() == (mx.default_device().type == mx.DeviceType.gpu)
    monkeypatch.setattr(graphs.mx, "default_device", lambda: mx.Device(mx.gpu))
    assert graphs.wanted()
    monkeypatch.setenv(graphs.SWITCH, "0")
    assert not graphs.wanted()
    monkeypatch.setenv(graphs.SWITCH, "yes")
    with pytest.raises(ValueError, match=r"\[graphs\] expected MLX_BERT_COMPILE to be 0 or 1 but got 'yes'"):
        graphs.wanted()


@pytest.fixture
def switched_on(monkeypatch):
    monkeypatch.setenv(graphs.SWITCH, "1")


def test_inference_uses_graphs(switched_on, tiny_bert_folder, monkeypatch):
    texts = ["the good film", "a bad book", "the good film", "it rains"]
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    model = TaskModel.new(BertCore.from_pretrained(tiny_bert_folder), "sequence_classification", 1)
    reranker = CrossEncoder(model, Tokenizer.from_pretrained(tiny_bert_folder))
    features = pipeline("feature-extraction", str(tiny_bert_folder))
    pairs = [(text, "a film") for text in texts]

    def run():
        return [encoder.encode(texts), reranker.predict(pairs), np.array(features(texts[0]))]

    results = [run() for _ in range(3)]
    for core in (encoder.core, model.bert, features.model):
        assert core._graphs.shapes
        core.compile_graphs(False)
    for each in results:
        for got, wanted in zip(each, run(), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_threads_share_an_encoder(switched_on, tiny_bert_folder):
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    texts = [["the " * length, "a film"] for length in (1, 5, 9, 20)]
    encoder.core.compile_graphs(False)
    expected = [encoder.encode(each) for each in texts]
    encoder.core.compile_graphs(True)
    wrong = []

    def work(place):
        for _ in range(6):
            if not np.allclose(encoder.encode(texts[place]), expected[place], atol=1e-5):
                wrong.append(place)

    pool = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in pool:
        thread.start()
    work(0)
    for thread in pool:
        thread.join()
    assert not wrong
    assert len(encoder.core._graphs.shapes) >= 4


def test_memory_is_flat(switched_on, tiny_bert_folder):
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    rows = memory.shared_calls(encoder, 400, 1)
    assert 10 < len(encoder.core._graphs.shapes) <= graphs.MOST
    settled = [row for row in rows if row["calls"] >= 200]
    assert settled[-1]["active MB"] <= settled[0]["active MB"] + 0.5
    assert memory.growth_mb(rows) < 12
