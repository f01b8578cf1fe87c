"""Feed-forward blocks: their formulas, positions apart, float16, gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from heads.ffn import FFNS, create_ffn

DIM, OUT = 6, 5
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
WHERE = MASK.astype(bool)
F = torch.nn.functional


def states(dim=DIM):
    return mx.random.normal((4, 5, dim), key=mx.random.key(2))


def redrawn(name, output_dim=OUT, **options):
    """A block in eval mode with parameters of std 0.3, so that each of them matters."""
    ffn = create_ffn(name, DIM, output_dim, **options).eval()
    keys = iter(mx.random.split(mx.random.key(7), 32))
    draw = lambda x: 0.3 * mx.random.normal(x.shape, key=next(keys))  # noqa: E731
    ffn.load_weights([(path, draw(x)) for path, x in tree_flatten(ffn.parameters())])
    return ffn


def formulas(w, x):
    """Each block in torch: ``w(name, x)`` applies the linear layer of that name."""

    def gated(name, activation):
        gate, value = w(name, x).chunk(2, -1)
        return activation(gate) * value

    def stream(name, z):
        hidden = F.gelu(w.norm(f"{name}.norm", w(f"{name}.up", z)))
        return torch.sigmoid(w(f"{name}.down", hidden))

    def logic():
        a, b = torch.sigmoid(w("operands", x)).chunk(2, -1)
        gate = torch.softmax(w("gate", x), -1)
        mixed = gate[..., :1] * a * b + gate[..., 1:2] * (a + b - a * b) + gate[..., 2:] * (a - b) ** 2
        return w("down", mixed)

    def counting():
        keys = torch.sigmoid(w("key", x))
        forward, backward = keys.cumsum(1), keys.flip(1).cumsum(1).flip(1)
        gate = torch.sigmoid(w("gate", x))
        return gate * F.gelu(w("counts", torch.cat([forward, backward], -1))) + (1 - gate) * w("input", x)

    def gated_mlp():
        gate, value = w("gate_up", x).chunk(2, -1)
        return w("down", F.relu(gate) * F.relu(value))

    return {
        "mlp": lambda: w("down", F.gelu(w("up", x))),
        "swin_mlp": lambda: w("down", F.gelu(w("up", x))),
        "residual": lambda: w("down", F.relu(w("up", x))) + w("skip", x),
        "swiglu": lambda: w("down", gated("gate_up", F.silu)),
        "geglu": lambda: w("down", gated("gate_value", F.gelu)),
        "orthoglu": lambda: w("down", gated("gate_value", F.gelu)),
        "glu": lambda: w("down", gated("gate_value", F.silu)),
        "gated_mlp": gated_mlp,
        "differential": lambda: w(
            "down", w.norm("norm", stream("positive", F.relu(x)) - stream("negative", F.relu(-x)))
        ),
        "power_mlp": lambda: F.relu(w("power", x)) ** 3 + w("basis", F.silu(x)),
        "logic": logic,
        "counting": counting,
    }


class TorchLayers:
    """The parameters of one of our blocks, applied by torch."""

    def __init__(self, ffn):
        self.weights = {path: torch.tensor(np.array(x)) for path, x in tree_flatten(ffn.parameters())}

    def __call__(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name, x):
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.weights.get(f"{name}.bias"), 1e-6)


@pytest.mark.parametrize("name", FFNS)
def test_formula(name):
    ffn = redrawn(name)
    expected = formulas(TorchLayers(ffn), torch.tensor(np.array(states())))[name]()
    assert expected.shape == (4, 5, OUT)
    np.testing.assert_allclose(np.array(ffn(states())), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", FFNS)
def test_vectors_and_output_size(name):
    ffn = redrawn(name, output_dim=None)
    vectors = states()[:, 0]
    assert ffn(vectors).shape == (4, DIM)
    # A vector is a sequence of one token.
    np.testing.assert_allclose(np.array(ffn(vectors)), np.array(ffn(vectors[:, None]))[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", FFNS)
def test_padding_never_changes_real_positions(name):
    ffn, mask = redrawn(name), mx.array(MASK)
    expected = np.array(ffn(states(), mask))[WHERE]
    for junk in (30.0, mx.nan):
        found = np.array(ffn(mx.where(mask[..., None] > 0, states(), junk), mask))[WHERE]
        np.testing.assert_array_equal(found, expected)
    if name != "counting":
        np.testing.assert_array_equal(np.array(ffn(states()))[WHERE], expected)


def test_counting_counts_real_tokens_only():
    ffn = redrawn("counting")
    x = states()[:1, :3]
    padding = mx.ones((1, 2, DIM))
    alone = np.array(ffn(x))
    right = ffn(mx.concatenate([x, padding], axis=1), mx.array([[1, 1, 1, 0, 0]]))
    left = ffn(mx.concatenate([padding, x], axis=1), mx.array([[0, 0, 1, 1, 1]]))
    np.testing.assert_allclose(np.array(right)[:, :3], alone, atol=1e-6)
    np.testing.assert_allclose(np.array(left)[:, 2:], alone, atol=1e-6)


@pytest.mark.parametrize("name", FFNS)
def test_every_parameter_learns(name):
    ffn = redrawn(name)
    weights = mx.random.normal((4, 5, OUT), key=mx.random.key(9))
    loss = lambda model: mx.sum(model(states(), mx.array(MASK)) * weights)  # noqa: E731
    for path, gradient in tree_flatten(nn.value_and_grad(ffn, loss)(ffn)[1]):
        assert mx.isfinite(gradient).all().item(), path
        assert mx.abs(gradient).max().item() > 1e-5, path


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", FFNS)
def test_half_precision_is_finite_and_close(name, dtype):
    ffn = redrawn(name)
    expected = np.array(ffn(states(), mx.array(MASK)))
    ffn.set_dtype(dtype)
    found = ffn(states().astype(dtype), mx.array(MASK))
    assert found.dtype == dtype
    assert np.abs(np.array(found.astype(mx.float32)) - expected).max() < 0.05 * np.abs(expected).max()
    fresh = create_ffn(name, DIM, OUT)
    fresh.set_dtype(dtype)
    assert mx.isfinite(fresh((states() * 100).astype(dtype))).all().item()


@pytest.mark.parametrize("name", FFNS)
def test_dropout_only_while_training(name):
    ffn, plain = redrawn(name, dropout=0.5), redrawn(name)
    np.testing.assert_array_equal(np.array(ffn(states())), np.array(plain(states())))
    ffn.train()
    assert mx.abs(ffn(states()) - ffn(states())).max().item() > 1e-3


def test_swin_mlp_drops_twice():
    ffn = create_ffn("swin_mlp", DIM, dropout=0.5)
    zeros = (np.array(ffn(mx.ones((100, DIM)))) == 0).mean()
    assert 0.4 < zeros < 0.6
    assert not (np.array(create_ffn("mlp", DIM, dropout=0.5)(mx.ones((100, DIM)))) == 0).any()


def test_sizes():
    inner = {size: create_ffn("swiglu", size).down.weight.shape[1] for size in (64, 384, 768, 1024)}
    assert inner == {64: 256, 384: 1024, 768: 2048, 1024: 2816}
    assert create_ffn("mlp", DIM, OUT, expansion=3).up.weight.shape == (3 * OUT, DIM)
    assert create_ffn("geglu", DIM).gate_value.weight.shape == (8 * DIM, DIM)
    assert create_ffn("swiglu", DIM, multiple_of=8).down.weight.shape == (DIM, 16)
    assert all(not path.endswith("bias") for path, _ in tree_flatten(create_ffn("swiglu", DIM).parameters()))
    assert "bias" not in create_ffn("power_mlp", DIM).basis


def test_penalties_are_zero_for_orthonormal_weights():
    ortho = create_ffn("orthoglu", DIM)
    assert ortho.regularization_loss().item() < 1e-10
    ortho.down.weight = 2 * ortho.down.weight
    assert ortho.regularization_loss().item() == pytest.approx(1e-3 * 9 / DIM, rel=1e-3)
    plain = create_ffn("differential", DIM, orthogonality=0.0, weight_decay=1e-4)
    squares = sum(
        (np.array(x) ** 2).sum()
        for path, x in tree_flatten(plain.parameters())
        if path.startswith(("pos", "neg")) and "norm" not in path and path.endswith("weight")
    )
    assert plain.regularization_loss().item() == pytest.approx(1e-4 * squares, rel=1e-4)
    assert create_ffn("differential", DIM).regularization_loss().item() > plain.regularization_loss().item()


def test_power_mlp_power():
    ffn = redrawn("power_mlp", k=2)
    layers, x = TorchLayers(ffn), torch.tensor(np.array(states()))
    expected = F.relu(layers("power", x)) ** 2 + layers("basis", F.silu(x))
    np.testing.assert_allclose(np.array(ffn(states())), expected.numpy(), atol=1e-5)


def test_logic_temperature_sharpens_the_gate():
    cold = redrawn("logic", temperature=1e-3)
    x = states()
    a, b = (np.array(part) for part in mx.split(mx.sigmoid(cold.operands(x)), 2, axis=-1))
    choice = np.array(cold.gate(x)).argmax(-1)[..., None]
    mixed = np.choose(choice, [a * b, a + b - a * b, (a - b) ** 2])
    np.testing.assert_allclose(np.array(cold(x)), np.array(cold.down(mx.array(mixed))), atol=1e-2)


def test_gated_mlp_activates_both_branches_and_the_output():
    ffn = redrawn("gated_mlp", output_activation="relu")
    plain = redrawn("gated_mlp")
    np.testing.assert_array_equal(np.array(ffn(states())), np.maximum(np.array(plain(states())), 0))


def test_errors():
    with pytest.raises(ValueError, match=r"\[ffn_type\] expected an available name but got 'moe'.*orthoglu"):
        create_ffn("moe", DIM)
    with pytest.raises(ValueError, match=r"expected options of 'swiglu' but got activation"):
        create_ffn("swiglu", DIM, activation="relu")
    with pytest.raises(ValueError, match=r"\[differential FFN\] expected an even inner size but got 15"):
        create_ffn("differential", DIM, 5, expansion=3)
    with pytest.raises(ValueError, match=r"\[ffn\] expected an inner size of at least 1 but got 0"):
        create_ffn("mlp", DIM, expansion=0.1)
    with pytest.raises(ValueError, match=r"\[attention_mask\] expected shape \(4, 5\) but got \(4, 4\)"):
        create_ffn("counting", DIM)(states(), mx.ones((4, 4)))
