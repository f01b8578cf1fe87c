"""Every parameter of every architecture trains, with gradient checkpointing or without."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore
from mlx_bert.training.recompute import gradient_checkpointing

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
DEBERTA = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p"}
CONFIGS = {
    "albert": {"embedding_size": 24, "inner_group_num": 2, "num_hidden_groups": 2},
    "bert": {},
    "deberta-v2": {**DEBERTA, "share_att_key": True, "conv_kernel_size": 3, "type_vocab_size": 2},
    "deberta-v2 without shared keys": {**DEBERTA, "embedding_size": 24},
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 24},
    "modernbert": {},
    "mpnet": {},
    "roberta": {},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_gradient_and_checkpointing_keeps_it(name):
    mx.random.seed(0)
    core = BertCore({"model_type": name.split()[0], **TINY, **CONFIGS[name]}).eval()
    for layer in core.encoder.layers:
        layer.train()
        layer.apply_to_modules(lambda _, module: isinstance(module, nn.Dropout) and module.eval())
    for attention in (module for _, module in core.named_modules() if hasattr(module, "dropout_prob")):
        attention.dropout_prob = 0.0
    ids = mx.random.randint(5, 99, (3, 9))
    mask = mx.array([[1] * 9, [1] * 6 + [0] * 3, [1] * 9])
    target = mx.random.normal((3, 9, 32))

    def loss(core):
        output = core(ids, mask, compute_pooling=False)
        pooled = mx.sum(output.pooler_output) if getattr(core.encoder, "pooler", None) else 0
        return mx.mean(mx.square(output.last_hidden_state - target)) + pooled

    loss_and_grad = nn.value_and_grad(core, loss)
    plain = dict(tree_flatten(loss_and_grad(core)[1]))
    assert plain.keys() == dict(tree_flatten(core.parameters())).keys()
    for parameter, gradient in plain.items():
        assert mx.max(mx.abs(gradient)).item() > 0, parameter
    with gradient_checkpointing(core.encoder.layers):
        recomputed = dict(tree_flatten(loss_and_grad(core)[1]))
    for parameter, gradient in plain.items():
        np.testing.assert_allclose(np.array(recomputed[parameter]), np.array(gradient), atol=1e-6, err_msg=parameter)
