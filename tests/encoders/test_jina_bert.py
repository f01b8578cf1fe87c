"""Jina BERT v2 against a small torch model written from its formulae: transformers has no code for it."""

import math
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlx_bert.core import BertCore
from mlx_bert.encoders import bert, find_encoder, jina_bert

TINY = {
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
}
CODE = {"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}}


class Reference(nn.Module):
    """Parameters under the names of the checkpoints; both sorts of layer; the assert_parity interface."""

    def __init__(self, **options):
        super().__init__()
        values = {**TINY, **options}
        self.config = SimpleNamespace(**values, to_dict=lambda: values)
        c = self.config
        self.code = "qk-post-norm" in str(c.auto_map)
        names = {"embeddings.word_embeddings": nn.Embedding(c.vocab_size, c.hidden_size)}
        names["embeddings.token_type_embeddings"] = nn.Embedding(2, c.hidden_size)
        names["embeddings.LayerNorm"] = self.norm()
        names["pooler.dense"] = nn.Linear(c.hidden_size, c.hidden_size)
        for n in range(c.num_hidden_layers):
            stem = f"encoder.layer.{n}."
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                names[f"{stem}attention.{part}"] = nn.Linear(c.hidden_size, c.hidden_size)
            names[f"{stem}attention.output.LayerNorm"] = self.norm()
            first, second = ("up_gated_layer", "down_layer") if self.code else ("gated_layers", "wo")
            names[f"{stem}mlp.{first}"] = nn.Linear(c.hidden_size, 2 * c.intermediate_size, bias=False)
            names[f"{stem}mlp.{second}"] = nn.Linear(c.intermediate_size, c.hidden_size)
            norms = ["attention.self.layer_norm_q", "attention.self.layer_norm_k", "layer_norm_1", "layer_norm_2"]
            for norm in norms if self.code else ["mlp.layernorm"]:
                names[f"{stem}{norm}"] = self.norm()
        for name, module in names.items():
            parent = self
            for part in name.split(".")[:-1]:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent._modules[part]
            parent.add_module(name.split(".")[-1], module)
        self.names = names

    def norm(self):
        return nn.LayerNorm(self.config.hidden_size, eps=self.config.layer_norm_eps)

    def set_attn_implementation(self, name):
        assert name == "eager"

    def heads(self, x):
        return x.view(*x.shape[:2], self.config.num_attention_heads, -1).transpose(1, 2)

    def forward(self, ids, attention_mask, token_type_ids=None, **_):
        c, m = self.config, self.names
        segments = torch.zeros_like(ids) if token_type_ids is None else token_type_ids
        x = m["embeddings.word_embeddings"](ids) + m["embeddings.token_type_embeddings"](segments)
        x = m["embeddings.LayerNorm"](x)
        places = torch.arange(ids.shape[1])
        # Six heads: the four slopes of four heads, then the first and third of eight.
        slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
        bias = -slopes[:, None, None] * (places[:, None] - places[None, :]).abs()
        bias = bias.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(torch.float32).min)
        states, attentions = [x], []
        for n in range(c.num_hidden_layers):
            layer = {name.removeprefix(f"encoder.layer.{n}."): module for name, module in m.items()}
            q, k = layer["attention.self.query"](x), layer["attention.self.key"](x)
            if self.code:
                q, k = layer["attention.self.layer_norm_q"](q), layer["attention.self.layer_norm_k"](k)
            q, k, v = self.heads(q), self.heads(k), self.heads(layer["attention.self.value"](x))
            weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias, dim=-1)
            attended = layer["attention.output.dense"]((weights @ v).transpose(1, 2).flatten(2))
            attended = layer["attention.output.LayerNorm"](x + attended)
            act = F.gelu if c.feed_forward_type == "geglu" else F.relu
            if self.code:
                x = layer["layer_norm_1"](x + attended)
                up, gate = layer["mlp.up_gated_layer"](x).chunk(2, dim=-1)
                x = layer["layer_norm_2"](x + layer["mlp.down_layer"](up * act(gate)))
            else:
                gate, up = layer["mlp.gated_layers"](attended).chunk(2, dim=-1)
                x = layer["mlp.layernorm"](attended + layer["mlp.wo"](act(gate) * up))
            states.append(x)
            attentions.append(weights)
        pooled = torch.tanh(m["pooler.dense"](x[:, 0]))
        return SimpleNamespace(last_hidden_state=x, hidden_states=states, attentions=attentions, pooler_output=pooled)


@pytest.mark.parametrize(
    "options",
    [{}, {"feed_forward_type": "reglu", "layer_norm_eps": 1e-2}, CODE, {**CODE, "feed_forward_type": "reglu"}],
    ids=["geglu", "reglu", "code-geglu", "code-reglu"],
)
def test_parity(assert_parity, options):
    core = assert_parity(Reference(**options))
    assert core.config.qk_post_norm is ("qk-post-norm" in str(options))


def test_parity_with_segments(assert_parity):
    assert_parity(Reference(), token_type_ids=np.array([[0] * 5 + [1] * 7]))


def test_slopes():
    assert jina_bert.slopes(8) == [2**-n for n in range(1, 9)]
    assert jina_bert.slopes(4) == [2**-2, 2**-4, 2**-6, 2**-8]
    twelve = jina_bert.slopes(12)
    assert twelve[:8] == jina_bert.slopes(8)
    assert twelve[8:] == jina_bert.slopes(16)[0:8:2]


def test_a_config_that_says_bert_is_told_by_its_keys():
    assert find_encoder(TINY) is jina_bert
    assert find_encoder({**TINY, "position_embedding_type": "absolute"}) is bert


@pytest.mark.parametrize("options", [{}, CODE], ids=["plain", "code"])
def test_save_and_load_keep_names_and_numbers(tmp_path, options):
    core = BertCore({**TINY, **options}).eval()
    core.save_pretrained(tmp_path)
    assert set(mx.load(str(tmp_path / "model.safetensors"))) == set(Reference(**options).state_dict())
    ids = mx.array([[5, 6, 7, 8]])
    again = BertCore.from_pretrained(tmp_path)
    assert mx.array_equal(again(ids).last_hidden_state, core(ids).last_hidden_state)


def test_what_is_not_supported_is_refused():
    with pytest.raises(ValueError, match="expected feed_forward_type to be 'geglu' or 'reglu' but got 'original'"):
        BertCore({**TINY, "feed_forward_type": "original"})
    with pytest.raises(ValueError, match="expected position_ids to be None"):
        BertCore(TINY)(mx.array([[5, 6]]), position_ids=mx.array([[0, 1]]))


@pytest.mark.parametrize("options", [{}, CODE], ids=["plain", "code"])
def test_half_precision(assert_half_precision, options):
    assert_half_precision({**TINY, **options})
