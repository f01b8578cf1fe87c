"""Normalizations: worked examples, torch, masks, running statistics, float16, gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from heads.normalization import NORMALIZATIONS, create_normalization

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
WHERE = MASK.astype(bool)


def states(dim=6, scale=2.0):
    return scale * mx.random.normal((4, 5, dim), key=mx.random.key(2)) + 1


def redrawn(name, dim=6, **options):
    norm = create_normalization(name, dim, **options)
    keys = iter(mx.random.split(mx.random.key(4), 8))
    norm.load_weights(
        [
            (path, x + 0.3 * mx.random.normal(x.shape, key=next(keys)))
            for path, x in tree_flatten(norm.trainable_parameters())
        ],
        strict=False,
    )
    return norm


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layer_norm", [-1.34164, -0.447213, 0.447213, 1.34164]),
        ("zero_centered_rms_norm", [-1.34164, -0.447213, 0.447213, 1.34164]),
        ("rms_norm", [0.365148, 0.730297, 1.095445, 1.460593]),
        ("band_rms", [0.346891, 0.693782, 1.040673, 1.387564]),
        ("adaptive_band_rms", [0.346891, 0.693782, 1.040673, 1.387564]),
        ("zero_centered_band_rms_norm", [-1.274558, -0.424853, 0.424853, 1.274558]),
        ("logit_norm", [4.564355, 9.128709, 13.693064, 18.257419]),
        ("max_logit_norm", [0.182574, 0.365148, 0.547723, 0.730297]),
        ("dynamic_tanh", [0.462117, 0.761594, 0.905148, 0.964028]),
        ("global_response_norm", [1.4, 3.6, 6.6, 10.4]),
        ("none", [1, 2, 3, 4]),
    ],
)
def test_worked_example(name, expected):
    found = create_normalization(name, 4)(mx.array([[1.0, 2, 3, 4]]))
    np.testing.assert_allclose(np.array(found), [expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_padding_never_changes_real_positions(name, mode):
    x, mask = states(), mx.array(MASK)
    real = mask[..., None] > 0
    found = []
    for junk in (0.0, 300.0, mx.nan):
        norm = getattr(redrawn(name), mode)()
        found.append(np.array(norm(mx.where(real, x, junk), mask))[WHERE])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert np.isfinite(found[0]).all()


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_vectors_and_sequences(name):
    norm = redrawn(name).eval()
    vectors = states()[:, 0]
    assert norm(vectors).shape == (4, 6)
    # A vector is a sequence of one token.
    np.testing.assert_allclose(np.array(norm(vectors)), np.array(norm(vectors[:, None]))[:, 0], atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_half_precision_is_finite_and_close(name, dtype):
    norm = redrawn(name).eval()
    x = states(scale=200.0).astype(dtype)  # squares leave the range of float16
    expected = np.array(norm(x.astype(mx.float32), mx.array(MASK)))
    norm.set_dtype(dtype)
    found = norm(x, mx.array(MASK))
    assert found.dtype == dtype
    assert mx.isfinite(found).all().item()
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)), expected, rtol=0.05, atol=0.03 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_every_parameter_learns(name):
    norm, mask = redrawn(name), mx.array(MASK)
    weights = mx.where(mask[..., None] > 0, mx.random.normal((4, 5, 6), key=mx.random.key(9)), 0.0)
    loss = lambda model: mx.sum(model(states(), mask) * weights)  # noqa: E731
    if tree_flatten(norm.trainable_parameters()):
        for path, gradient in tree_flatten(nn.value_and_grad(norm, loss)(norm)[1]):
            assert mx.isfinite(gradient).all().item(), path
            assert mx.abs(gradient).max().item() > 1e-6, path
    gradient = mx.grad(lambda x: mx.sum(norm(x, mask) * weights))(states())
    assert mx.isfinite(gradient).all().item()
    assert mx.abs(gradient).max().item() > 1e-6
    zeros = mx.grad(lambda x: mx.sum(norm(x)))(mx.zeros((2, 6)))
    assert mx.isfinite(zeros).all().item()


def test_layer_and_rms_norm_are_those_of_torch():
    x = np.array(states())
    for name, theirs in (("layer_norm", torch.nn.LayerNorm(6, 1e-6)), ("rms_norm", torch.nn.RMSNorm(6, 1e-6))):
        ours = redrawn(name)
        theirs.weight.data = torch.tensor(np.array(ours.weight))
        if name == "layer_norm":
            theirs.bias.data = torch.tensor(np.array(ours.bias))
        np.testing.assert_allclose(np.array(ours(mx.array(x))), theirs(torch.tensor(x)).detach().numpy(), atol=1e-5)


def test_batch_norm_is_that_of_torch_over_three_steps():
    ours, theirs = redrawn("batch_norm"), torch.nn.BatchNorm1d(6)
    theirs.weight.data, theirs.bias.data = (torch.tensor(np.array(x)) for x in (ours.weight, ours.bias))
    rng = np.random.default_rng(0)
    for step in range(3):
        x = rng.normal(step, 1 + step, (9, 6)).astype(np.float32)
        np.testing.assert_allclose(np.array(ours(mx.array(x))), theirs(torch.tensor(x)).detach().numpy(), atol=1e-5)
    ours.eval()
    theirs.eval()
    np.testing.assert_allclose(np.array(ours._running_mean), theirs.running_mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.array(ours._running_var), theirs.running_var.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.array(ours(mx.array(x))), theirs(torch.tensor(x)).detach().numpy(), atol=1e-5)


def test_batch_norm_leaves_padding_out_of_its_statistics():
    ours, theirs = create_normalization("batch_norm", 6), torch.nn.BatchNorm1d(6)
    x = states()
    expected = theirs(torch.tensor(np.array(x)[WHERE])).detach().numpy()
    np.testing.assert_allclose(np.array(ours(x, mx.array(MASK)))[WHERE], expected, atol=1e-5)
    np.testing.assert_allclose(np.array(ours._running_var), theirs.running_var.numpy(), atol=1e-5)
    before = np.array(ours._running_mean)
    ours(x, mx.zeros((4, 5)))
    np.testing.assert_array_equal(np.array(ours._running_mean), before)


@pytest.mark.parametrize("name", ["batch_norm", "band_logit_norm"])
def test_running_statistics_are_buffers(name):
    parent = nn.Module()
    parent.norm = create_normalization(name, 6)
    parent.norm(states())
    parent.freeze()
    parent.unfreeze()
    assert not any("running" in path for path, _ in tree_flatten(parent.parameters()))
    holders = [module for module in parent.modules() if getattr(type(module), "SAVED_BUFFERS", ())]
    assert len(holders) == 1
    for buffer in type(holders[0]).SAVED_BUFFERS:
        assert isinstance(getattr(holders[0], f"_{buffer}"), mx.array)


def test_running_statistics_follow_a_compiled_step():
    eager, compiled = (create_normalization("batch_norm", 6) for _ in range(2))
    step = mx.compile(lambda x: compiled(x), inputs=compiled.state, outputs=compiled.state)
    for _ in range(2):
        mx.eval(eager(states()), step(states()), compiled.state)
    np.testing.assert_allclose(np.array(compiled._running_mean), np.array(eager._running_mean), atol=1e-6)
    assert np.abs(np.array(eager._running_mean)).min() > 0


def test_band_rms_keeps_the_rms_in_its_band():
    norm = create_normalization("band_rms", 6, max_band_width=0.3)
    for band, low, high in ((-50.0, 0.699, 0.701), (50.0, 0.999, 1.001), (0.0, 0.849, 0.851)):
        norm.band = mx.array([band])
        rms = np.sqrt((np.array(norm(states())) ** 2).mean(-1))
        assert low < rms.min() <= rms.max() < high
    norm.band = mx.array([2.0])
    assert norm.regularization_loss().item() == pytest.approx(4e-5)


def test_adaptive_band_follows_the_level_of_the_row():
    norm = create_normalization("adaptive_band_rms", 6)
    norm.band.weight = mx.ones((6, 1))
    loud, quiet = np.array(norm(states() * 10))[0], np.array(norm(states() / 10))[0]
    assert np.abs(loud).mean() > 1.05 * np.abs(quiet).mean()


def test_band_logit_norm_grows_with_the_length():
    norm = create_normalization("band_logit_norm", 6, max_band_width=0.2)
    x = states() * mx.arange(1, 5)[:, None, None]
    lengths, outputs = (np.linalg.norm(np.array(v), axis=-1).ravel() for v in (x, norm(x)))
    assert outputs.min() >= 0.8 - 1e-5
    assert outputs.max() <= 1 + 1e-5
    assert np.ptp(outputs) > 0.15
    assert (np.diff(outputs[np.argsort(lengths)]) >= -1e-6).all()


def test_global_response_norm_over_tokens():
    norm, x = redrawn("global_response_norm"), np.array(states())
    response = np.sqrt((x[:, :, :] ** 2 * MASK[..., None]).sum(1, keepdims=True) + 1e-6)
    response = response / (response.mean(-1, keepdims=True) + 1e-6)
    expected = x + np.array(norm.weight) * x * response + np.array(norm.bias)
    np.testing.assert_allclose(
        np.array(norm(mx.array(x), mx.array(MASK)))[WHERE], expected[WHERE], rtol=1e-4, atol=1e-5
    )


def test_errors():
    with pytest.raises(
        ValueError, match=r"\[normalization_type\] expected an available name but got 'layernorm'.*rms_norm"
    ):
        create_normalization("layernorm", 6)
    with pytest.raises(ValueError, match=r"'decoupled_max_logit' \(it reduces the feature axis"):
        create_normalization("decoupled_max_logit", 6)
    with pytest.raises(ValueError, match=r"\[max_band_width\] expected a number between 0 and 1 but got 1.0"):
        create_normalization("band_rms", 6, max_band_width=1.0)
    with pytest.raises(ValueError, match=r"\[LogitNorm\] expected a positive temperature but got 0"):
        create_normalization("logit_norm", 6, temperature=0)
    with pytest.raises(ValueError, match=r"expected options of 'rms_norm' but got bias. It accepts: eps, use_scale"):
        create_normalization("rms_norm", 6, bias=True)
