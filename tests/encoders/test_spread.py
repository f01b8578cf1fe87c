"""CPU streams: one long batch on several of them gives the same results, and a batch on each is computed in turn."""

import io
import re
from collections import Counter, deque

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_bert.core import BertCore
from mlx_bert.encoders import cpu

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
LONG_CONTEXT = {
    "bert": {},
    "modernbert": {"local_attention": 8},
    "nomic_bert": {},
    "new": {},
    "eurobert": {"num_key_value_heads": 1},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8, "use_bidirectional_attention": True},
    "jina_embeddings_v3": {},
}


@pytest.fixture(scope="module")
def streams():
    return [mx.default_stream(mx.cpu), mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cpu, "SPREAD_FROM", 8)
    monkeypatch.setattr(cpu, "TILE", 64)
    monkeypatch.setattr(cpu, "MIN_QUERIES", 1)


def normal(*shape):
    return mx.random.normal(shape, key=mx.random.key(0))


@pytest.mark.parametrize(
    ("shape", "parts"),
    [((1, 9, 4), [(1, 3, 4)] * 3), ((1, 8, 4), [(1, 3, 4), (1, 3, 4), (1, 2, 4)]), ((4, 8, 4), [(2, 8, 4)] * 2)],
)
def test_each_stream_has_a_share(streams, shape, parts):
    seen = []

    def function(x):
        seen.append((x.shape, mx.default_stream(mx.cpu)))
        return x * 2

    x = normal(*shape)
    with cpu.spread_over(streams):
        result = cpu.by_rows(function, x)
    assert mx.array_equal(result, x * 2)
    assert seen == list(zip(parts, streams, strict=False))


def test_what_stays_in_one_piece(streams):
    calls = []
    x = normal(1, 9, 4)
    cpu.by_rows(lambda x: calls.append(x.shape) or x, x)
    with cpu.spread_over(streams):
        cpu.by_rows(lambda x: calls.append(x.shape) or x, x[:, :7])
        cpu.by_rows(lambda x: calls.append(x.shape) or x, x.astype(mx.float16))
    with cpu.spread_over(streams[:1]):
        cpu.by_rows(lambda x: calls.append(x.shape) or x, x)
    with pytest.raises(RuntimeError), cpu.spread_over(streams):
        raise RuntimeError
    cpu.by_rows(lambda x: calls.append(x.shape) or x, x)
    assert calls == [(1, 9, 4), (1, 7, 4), (1, 9, 4), (1, 9, 4), (1, 9, 4)]


def test_attention_tiles_take_turns(streams, monkeypatch):
    seen, attend = [], cpu._attend
    monkeypatch.setattr(cpu, "_attend", lambda *x: seen.append(str(mx.default_stream(mx.cpu))) or attend(*x))
    query = normal(1, 2, 12, 4)
    whole = cpu.attention(query, query, query, None, 0.5)
    assert len(set(seen)) == 1
    seen.clear()
    with cpu.spread_over(streams):
        result = cpu.attention(query, query, query, None, 0.5)
    assert {seen.count(str(stream)) for stream in streams} <= {len(seen) // 3, -(-len(seen) // 3)}
    assert len(seen) > 3
    assert mx.array_equal(result, whole)


@pytest.mark.parametrize("model_type", LONG_CONTEXT)
def test_an_encoder_gives_the_same_on_several_streams(streams, model_type, monkeypatch):
    mx.random.seed(0)
    core = BertCore({"model_type": model_type, **SIZES, **LONG_CONTEXT[model_type]}).eval()
    ids = mx.random.randint(1, 50, (1, 40), key=mx.random.key(1))
    whole = core(ids).last_hidden_state
    mx.eval(whole)
    products, call = [], nn.Linear.__call__
    monkeypatch.setattr(nn.Linear, "__call__", lambda self, x: products.append(x.shape) or call(self, x))
    with cpu.spread_over(streams):
        result = core(ids).last_hidden_state
    assert {shape[1] for shape in products if len(shape) == 3} == {
        14,
        12,
    }  # a third of the 40 tokens (poolers take 2-D)
    np.testing.assert_allclose(np.asarray(result), np.asarray(whole), atol=2e-6)


def front(*outputs: mx.array) -> int:
    """How many operations could be the next one, at most, as MLX walks from the outputs to what they need.

    It walks breadth first, which takes streams in turn, while these are no more than 20; then one output after the
    other (``eval_impl`` in mlx/transforms.cpp).
    """
    graph = io.StringIO()
    mx.export_to_dot(graph, *outputs)
    makers, users = {}, Counter()  # {array: (the operation that makes it, the arrays that this one needs)}
    for operation in re.split(r"^.*shape=rectangle.*$", graph.getvalue(), flags=re.MULTILINE)[1:]:
        needed = set(re.findall(r'^("\w+") -> ', operation, re.MULTILINE))
        made = re.findall(r' -> ("\w+")$', operation, re.MULTILINE)
        makers |= dict.fromkeys(made, (made[0], needed))
        users.update(needed)
    ready, widest, done = deque(array for array in makers if not users[array]), 0, set()
    while ready:
        widest = max(widest, len(ready))
        name, needed = makers[ready.popleft()]
        for array in () if name in done else needed:
            users[array] -= 1
            if not users[array] and array in makers:
                ready.append(array)
        done.add(name)
    assert not +users
    return widest


@pytest.mark.parametrize("model_type", LONG_CONTEXT)
def test_mlx_takes_the_batches_of_two_streams_in_turn(streams, model_type):
    mx.random.seed(0)
    core = BertCore({"model_type": model_type, **SIZES, **LONG_CONTEXT[model_type]}).eval()
    mx.eval(core.parameters())
    outputs = []
    for stream in streams[:2]:
        ids = mx.random.randint(1, 50, (2, 40), key=mx.random.key(1))
        mask = mx.arange(40) < mx.array([[40], [30]])
        with mx.stream(stream):
            outputs.append(core(ids, mask.astype(mx.int32)).last_hidden_state)
    assert front(*outputs) <= 20


def test_arrays_side_by_side(streams):
    """Each array on a stream of its own; what is too short, or another type, stays where it is."""
    seen = []

    def double(x):
        seen.append(str(mx.default_stream(mx.cpu)))
        return 2 * x

    long, short = normal(1, 2, 16, 4), normal(1, 2, 4, 4)
    with cpu.spread_over(streams):
        found = cpu.side_by_side(double, long, long, long)
        assert all(mx.array_equal(each, 2 * long) for each in found)
        assert seen == [str(stream) for stream in streams]
        seen.clear()
        cpu.side_by_side(double, short, short)
        cpu.side_by_side(double, long.astype(mx.float16), long)
    cpu.side_by_side(double, long, long)
    assert set(seen) == {str(mx.default_stream(mx.cpu))}
