"""Stacked LSTM and GRU against torch on each row's real tokens alone."""

import mlx.core as mx
import numpy as np
import pytest

from heads.recurrent import StackedRNN, pack_positions

torch = pytest.importorskip("torch")

D, H, L = 5, 4, 6
MASK = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1], [0] * 6], bool)
X = np.random.default_rng(0).normal(size=(5, L, D)).astype(np.float32)


def torch_twin(model: StackedRNN, cell: str, both: bool):
    """A torch module with the same weights; MLX has one bias for both products, and a GRU one more for n."""
    layers = len(model.forward_layers)
    kind = torch.nn.LSTM if cell == "lstm" else torch.nn.GRU
    twin = kind(D, H, layers, batch_first=True, bidirectional=both)
    with torch.no_grad():
        for number in range(layers):
            for suffix, stack in (("", model.forward_layers), ("_reverse", model.backward_layers)):
                if not stack:
                    continue
                layer, name = stack[number], f"l{number}{suffix}"
                getattr(twin, f"weight_ih_{name}").copy_(torch.tensor(np.array(layer.Wx)))
                getattr(twin, f"weight_hh_{name}").copy_(torch.tensor(np.array(layer.Wh)))
                bias = np.array(layer.bias if cell == "lstm" else layer.b)
                getattr(twin, f"bias_ih_{name}").copy_(torch.tensor(bias))
                hidden = np.zeros_like(bias)
                if cell == "gru":
                    hidden[-H:] = np.array(layer.bhn)
                getattr(twin, f"bias_hh_{name}").copy_(torch.tensor(hidden))
    return twin.eval()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_row_equals_torch_on_its_real_tokens(cell, both, layers):
    model = StackedRNN(D, H, layers, cell, both, dropout=0.5)
    model.eval()
    twin = torch_twin(model, cell, both)
    got = np.array(model(mx.array(X), mx.array(MASK)))
    assert got.shape == (5, L, model.output_size)
    for row in range(4):
        with torch.no_grad():
            wanted = twin(torch.tensor(X[row][MASK[row]])[None])[0][0].numpy()
        np.testing.assert_allclose(got[row][MASK[row]], wanted, atol=1e-5)
    assert not got[~MASK].any()
    with torch.no_grad():
        wanted = twin(torch.tensor(X))[0].numpy()
    np.testing.assert_allclose(np.array(model(mx.array(X))), wanted, atol=1e-5)


def test_real_tokens_come_first_in_their_order():
    forward, backward = (np.array(pack_positions(mx.array(MASK), back)) for back in (False, True))
    assert forward[3, :3].tolist() == [0, 2, 5]
    assert backward[3, :3].tolist() == [5, 2, 0]
    assert sorted(backward[3].tolist()) == list(range(L))


def test_dropout_stands_between_the_layers():
    model = StackedRNN(D, H, 2, dropout=0.9)
    x = mx.array(X)
    assert not mx.allclose(model(x), model(x))
    single = StackedRNN(D, H, 1, dropout=0.9)
    assert mx.array_equal(single(x), single(x))


def test_unknown_cells_are_refused():
    with pytest.raises(ValueError, match="'lstm' or 'gru'"):
        StackedRNN(D, H, 1, "rnn")
    with pytest.raises(ValueError, match="at least one layer"):
        StackedRNN(D, H, 0)
