"""BERT with a convolutional network on top, against transformers' BERT with the same network in torch."""

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from mlx_bert.core import BertCore
from mlx_bert.encoders.cnn_hybrid import Config
from mlx_bert.factory import create_bert_with_head, create_model
from mlx_bert.model import BertWithHead
from reference import redraw

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "cnn_num_filters": 12,
    "fusion_hidden_size": 20,
    "cnn_kernel_sizes": [2, 3, 4, 5],
    "use_dilated_conv": True,
    "dilation_rates": [1, 2, 4],
    "use_attention_fusion": True,
    "use_highway": True,
}


class ReferenceConfig(transformers.BertConfig):
    model_type = "cnn_hybrid"


class Conv(nn.Module):
    """A convolution with its weight as MLX keeps it: (out, width, in)."""

    def __init__(self, channels_in, channels_out, width, dilation=1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels_out, width, channels_in))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.dilation = dilation

    def forward(self, x):
        """Explicit sum over the window, zeros outside: places t - floor(w / 2) to t + ceil(w / 2) - 1."""
        width = self.weight.shape[1]
        result = self.bias.expand(*x.shape[:2], -1)
        for tap in range(width):
            shift = (tap - width // 2) * self.dilation
            moved = torch.zeros_like(x)
            for t in range(x.shape[1]):
                if 0 <= t + shift < x.shape[1]:
                    moved[:, t] = x[:, t + shift]
            result = result + moved @ self.weight[:, tap].T
        return result


class Reference(transformers.BertModel):
    def __init__(self, **options):
        config = ReferenceConfig(**{**TINY, **options})
        super().__init__(config, add_pooling_layer=False)
        c, width = config.cnn_num_filters, config.hidden_size
        cnn = nn.Module()
        cnn.convolutions = nn.ModuleList([Conv(width, c, size) for size in config.cnn_kernel_sizes])
        if config.use_dilated_conv:
            cnn.dilated = nn.Module()
            cnn.dilated.convolutions = nn.ModuleList([Conv(width, c, 3, rate) for rate in config.dilation_rates])
            cnn.dilated.norm = nn.LayerNorm(c)
        if config.use_attention_fusion:
            cnn.fusion = nn.Module()
            cnn.fusion.hidden, cnn.fusion.score = nn.Linear(c, c // 2), nn.Linear(c // 2, 1)
            cnn.fusion.out, cnn.fusion.norm = nn.Linear(c, c), nn.LayerNorm(c)
        else:
            c *= len(config.cnn_kernel_sizes) + config.use_dilated_conv
        cnn.highway = nn.ModuleList([nn.Module() for _ in range(2 * config.use_highway)])
        for layer in cnn.highway:
            layer.transform, layer.gate = nn.Linear(c, c), nn.Linear(c, c)
        cnn.token_projection = nn.Linear(width + c, config.fusion_hidden_size)
        cnn.pooled_projection = nn.Linear(width + c, config.fusion_hidden_size)
        cnn.pooled_norm = nn.LayerNorm(config.fusion_hidden_size)
        self.cnn = cnn

    def forward(self, ids, attention_mask, **options):
        output = super().forward(ids, attention_mask=attention_mask, **options)
        cnn, h, real = self.cnn, output.last_hidden_state, attention_mask[..., None].float()
        features = [torch.relu(conv(h * real)) for conv in cnn.convolutions]
        if self.config.use_dilated_conv:
            each = [F.gelu(conv(h * real)) for conv in cnn.dilated.convolutions]
            features.append(cnn.dilated.norm(torch.stack(each).mean(dim=0)))
        if self.config.use_attention_fusion:
            means = torch.stack([(feature * real).sum(1) / real.sum(1) for feature in features], dim=1)
            shares = torch.softmax(cnn.fusion.score(torch.tanh(cnn.fusion.hidden(means))), dim=1)
            mixed = sum(shares[:, k, :, None] * feature for k, feature in enumerate(features))
            fused = cnn.fusion.norm(cnn.fusion.out(mixed))
        else:
            fused = torch.cat(features, dim=-1)
        for layer in cnn.highway:
            gate = torch.sigmoid(layer.gate(fused))
            fused = gate * torch.relu(layer.transform(fused)) + (1 - gate) * fused
        largest = fused.masked_fill(real == 0, -torch.inf).amax(dim=1)
        first = torch.stack([row[int(mask.argmax())] for row, mask in zip(h, attention_mask, strict=True)])
        pooled = cnn.pooled_norm(cnn.pooled_projection(torch.cat([first, largest], dim=-1)))
        output.last_hidden_state = cnn.token_projection(torch.cat([h, fused], dim=-1))
        output["pooler_output"] = torch.relu(pooled)
        return output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_attention_fusion": False, "cnn_kernel_sizes": [1, 6]},
        {"use_dilated_conv": False, "use_highway": False},
        {"dilation_rates": [3]},
        {"use_attention_fusion": False, "use_dilated_conv": False},
    ],
)
def test_parity(assert_parity, options):
    core = assert_parity(Reference(**options))
    assert core.get_hidden_size() == 20


def test_a_cpu_computes_the_dilated_features_with_its_own_gelu(monkeypatch):
    """``nn.gelu`` takes one number at a time there."""

    def scalar(x):
        raise AssertionError("nn.gelu was called")

    core = BertCore({**ReferenceConfig(**TINY).to_dict(), "model_type": "cnn_hybrid"}).eval()
    monkeypatch.setattr(mlx.nn, "gelu", scalar)
    assert core(mx.array([[7, 8, 9]])).last_hidden_state.shape == (1, 3, 20)


def test_pooled_vector_with_left_padding():
    reference = redraw(Reference())
    core = BertCore(reference.config.to_dict())
    core.load_weights_from({name: mx.array(array.numpy()) for name, array in reference.state_dict().items()})
    ids, mask = np.array([[0, 0, 7, 8, 9]]), np.array([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        expected = reference(torch.tensor(ids), attention_mask=torch.tensor(mask)).pooler_output.numpy()
    np.testing.assert_allclose(np.array(core.eval()(mx.array(ids), mx.array(mask)).pooler_output), expected, atol=1e-4)


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "cnn_hybrid", **TINY})


def test_gates_start_mostly_closed():
    core = create_model("cnn_hybrid", config=TINY)
    assert all(mx.all(layer.gate.bias == -1).item() for layer in core.encoder.cnn.highway)


def test_a_plain_bert_gets_a_new_network(tiny_bert_folder, tmp_path):
    plain = BertCore.from_pretrained(tiny_bert_folder)
    hybrid = create_model("cnn_hybrid", pretrained_path=tiny_bert_folder, fusion_hidden_size=24, cnn_num_filters=8)
    ids = mx.array([[5, 6, 7, 8]])
    states = hybrid(ids, output_hidden_states=True).hidden_states[-1]
    assert mx.allclose(states, plain(ids).last_hidden_state, atol=1e-6)
    assert hybrid(ids).last_hidden_state.shape == (1, 4, 24)
    hybrid.save_pretrained(tmp_path / "hybrid")
    again = BertCore.from_pretrained(tmp_path / "hybrid")
    assert again.config == hybrid.config
    assert mx.array_equal(again(ids).pooler_output, hybrid(ids).pooler_output)


def test_any_head_attaches_and_survives_saving(tmp_path):
    model = create_bert_with_head({"model_type": "cnn_hybrid", **TINY}, head_type="token_classification", num_labels=3)
    model.eval()
    ids = mx.array([[5, 6, 7, 8]])
    logits = model(ids)["logits"]
    assert logits.shape == (1, 4, 3)
    model.save_pretrained(tmp_path)
    assert mx.array_equal(BertWithHead.from_pretrained(tmp_path)(ids)["logits"], logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cnn_kernel_sizes": [0]}, "expected positive integers as sizes of the network"),
        ({"cnn_kernel_sizes": []}, "to hold a number at least"),
        ({"fusion_hidden_size": -1}, "expected positive integers"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({**TINY, **change})
