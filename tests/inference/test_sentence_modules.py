"""Pooling, Dense, LayerNorm and Normalize against sentence-transformers' modules."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers import models as st

from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.sentence_modules import POOLING_FLAGS, Dense, LayerNorm, Normalize, Pooling, load_module

MODES = list(POOLING_FLAGS)
MASKS = {
    "right": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
    "left": [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
    "full": [[1] * 6] * 3,
}


def both(mode, mask, prompt_length=None, include_prompt=True):
    states = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    config = {"embedding_dimension": 4, "pooling_mode": mode, "include_prompt": include_prompt}
    theirs = {"token_embeddings": torch.tensor(states), "attention_mask": torch.tensor(mask)}
    ours = {"token_embeddings": mx.array(states), "attention_mask": None if np.all(mask) else mx.array(mask)}
    if prompt_length is not None:
        ours["prompt_length"] = theirs["prompt_length"] = prompt_length
    result = Pooling(config)(ours)["sentence_embedding"]
    return np.asarray(result), st.Pooling(**config)(theirs)["sentence_embedding"].numpy()


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("mode", MODES)
def test_each_mode(mode, side):
    ours, theirs = both(mode, MASKS[side])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("mode", MODES)
def test_prompt_left_out(mode, side):
    ours, theirs = both(mode, MASKS[side], prompt_length=1, include_prompt=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    if mode != "lasttoken":
        assert np.abs(ours - both(mode, MASKS[side])[0]).max() > 0.01


@pytest.mark.parametrize("modes", [*itertools.combinations(MODES, 2), tuple(MODES), ("lasttoken", "cls")])
def test_concatenations(modes):
    ours, theirs = both(list(modes), MASKS["right"])
    assert ours.shape == (3, 4 * len(modes))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_older_flags_keep_their_order():
    flags = dict.fromkeys(reversed(POOLING_FLAGS.values()), True)
    assert Pooling({"word_embedding_dimension": 4, **flags}).modes == MODES
    assert Pooling({"word_embedding_dimension": 4, "pooling_mode_cls_token": False}).modes == ["mean"]
    assert Pooling({"word_embedding_dimension": 4, "pooling_mode_cls_token": True}).output_size == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_padding_alone_is_finite(mode):
    features = {"token_embeddings": mx.ones((1, 3, 4)), "attention_mask": mx.zeros((1, 3))}
    pooled = Pooling({"embedding_dimension": 4, "pooling_mode": mode})(features)["sentence_embedding"]
    assert np.isfinite(np.asarray(pooled)).all()


@pytest.mark.parametrize(
    "activation",
    [
        torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(), torch.nn.ReLU(), torch.nn.ReLU6(), torch.nn.Sigmoid(),
        torch.nn.SiLU(), torch.nn.ELU(), torch.nn.LeakyReLU(), torch.nn.Softplus(),
        torch.nn.Softsign(), torch.nn.Mish(), torch.nn.Hardswish(),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_dense_activations(tmp_path, activation):
    torch.manual_seed(0)
    theirs = st.Dense(4, 3, activation_function=activation)
    theirs.save(str(tmp_path))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 3
    ours = load_module("sentence_transformers.models.Dense", tmp_path)({"sentence_embedding": mx.array(x)})
    expected = theirs({"sentence_embedding": torch.tensor(x)})["sentence_embedding"].detach().numpy()
    np.testing.assert_allclose(np.asarray(ours["sentence_embedding"]), expected, atol=2e-6)


@pytest.mark.parametrize("size", [3, 4])
def test_dense_residual(tmp_path, size):
    theirs = st.Dense(4, size, bias=False, use_residual=True)
    theirs.save(str(tmp_path))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    ours = load_module("sentence_transformers.base.modules.dense.Dense", tmp_path)({"sentence_embedding": mx.array(x)})
    expected = theirs({"sentence_embedding": torch.tensor(x)})["sentence_embedding"].detach().numpy()
    np.testing.assert_allclose(np.asarray(ours["sentence_embedding"]), expected, atol=1e-6)


def test_chain(tiny_bert, tmp_path):
    """Transformer, two poolings, Dense, LayerNorm and Normalize, saved by sentence-transformers itself."""
    torch.manual_seed(0)
    norm = st.LayerNorm(8)
    torch.nn.init.normal_(norm.norm.weight)
    torch.nn.init.normal_(norm.norm.bias)
    reference = SentenceTransformer(
        modules=[
            st.Transformer(str(tiny_bert)),
            st.Pooling(16, pooling_mode=("max", "weightedmean")),
            st.Dense(32, 8),
            norm,
            st.Normalize(),
        ],
        device="cpu",
    )
    reference.save_pretrained(str(tmp_path / "chain"))
    texts = ["abc", "", "query a b c", "x" * 60]
    ours = SentenceEncoder.from_pretrained(tmp_path / "chain")
    assert ours.get_embedding_dimension() == 8
    assert [type(module) for module in ours.modules] == [Pooling, Dense, LayerNorm, Normalize]
    np.testing.assert_allclose(ours.encode(texts), reference.encode(texts), atol=1e-5)


def test_dense_and_normalize_on_tokens(tiny_bert, tmp_path):
    """As in late-interaction models: module_input_name names the token embeddings."""
    on_tokens = {"module_input_name": "token_embeddings"}
    reference = SentenceTransformer(
        modules=[st.Transformer(str(tiny_bert)), st.Dense(16, 8, **on_tokens), st.Normalize(**on_tokens)], device="cpu"
    )
    reference.save_pretrained(str(tmp_path / "tokens"))
    ours = SentenceEncoder.from_pretrained(tmp_path / "tokens").encode(["abc"], output_value="token_embeddings")
    theirs = reference.encode(["abc"], output_value="token_embeddings")
    np.testing.assert_allclose(np.asarray(ours[0]), theirs[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Pooling({"embedding_dimension": 4, "pooling_mode": "median"}), r"pooling_mode to be among .*'median'"),
        (lambda: Pooling({}), "embedding_dimension to be a positive integer but got None"),
        (lambda: Dense({"in_features": 4}), "expected out_features in the module's config"),
        (
            lambda: Dense(
                {"in_features": 4, "out_features": 2, "activation_function": "torch.nn.modules.activation.GLU"}
            ),
            "GLU' is not supported",
        ),
        (
            lambda: Dense({"in_features": 4, "out_features": 2, "activation_function": "mine.Tanh"}),
            "'mine.Tanh' is not supported",
        ),
        (lambda: LayerNorm({}), "dimension to be an integer but got None"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_dense_weights_must_fit(tmp_path):
    st.Dense(4, 3).save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"in_features": 4, "out_features": 2}')
    with pytest.raises(ValueError, match=r"linear.weight expected shape \(2, 4\) but got \(3, 4\)"):
        load_module("Dense", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="Convert it first"):
        load_module("Dense", tmp_path)
