"""EmbeddingGemma, the bidirectional Gemma 3, against transformers."""

import mlx.core as mx
import numpy as np
import pytest
import transformers

from mlx_bert.core import BertCore
from mlx_bert.encoders.gemma3_text import Config
from reference import redraw

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "query_pre_attn_scalar": 60,  # redrawn norms make large scores, and a sharp softmax magnifies rounding
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "use_bidirectional_attention": True,
}


def build(**options):
    return transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**{**TINY, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding_window": 9, "query_pre_attn_scalar": 30, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 2, "head_dim": 12, "attention_bias": True, "hidden_activation": "silu"},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 20.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            }
        },
        {"layer_types": None, "num_hidden_layers": 6},
    ],
)
def test_parity(assert_parity, options):
    assert_parity(build(**options), length=20)


def test_parity_with_positions(assert_parity):
    positions = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
    assert_parity(build(), position_ids=positions)


def test_a_local_layer_sees_half_the_window_to_each_side():
    core = BertCore({"model_type": "gemma3_text", **TINY, "layer_types": ["sliding_attention"] * 4}).eval()
    seen = np.array(core(mx.full((1, 20), 7), output_attentions=True).attentions[0])[0, 0] > 0
    distance = np.abs(np.arange(20)[:, None] - np.arange(20)[None, :])
    assert np.array_equal(seen, distance <= 4)


def test_both_config_styles_give_the_same_config():
    older = {key: value for key, value in TINY.items() if key != "layer_types"}
    older |= {"_sliding_window_pattern": 2, "rope_theta": 9.0, "rope_local_base_freq": 5.0, "rope_scaling": None}
    rope = {"full_attention": {"rope_theta": 9.0}, "sliding_attention": {"rope_theta": 5.0}}
    newer = Config.from_dict({**TINY, "rope_parameters": rope})
    assert Config.from_dict(older) == newer
    assert newer.rope_parameters["full_attention"] == {"rope_type": "default", "rope_theta": 9.0}
    assert Config.from_dict(newer.to_dict()) == newer
    assert Config(num_hidden_layers=12).layer_types.count("full_attention") == 2


def test_transformers_reads_what_is_written(tmp_path):
    reference = redraw(build())
    reference.save_pretrained(tmp_path / "theirs")
    BertCore.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert again.config.to_dict()["sliding_window"] == 8
    written = again.state_dict()
    assert all(np.array_equal(written[name], array) for name, array in reference.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_bidirectional_attention": False}, "expected use_bidirectional_attention to be True but got False"),
        ({"attn_logit_softcapping": 50.0}, "expected attn_logit_softcapping to be None but got 50.0"),
        ({"layer_types": ["full_attention"]}, "expected layer_types to hold 4 times"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads but got 4 and 3"),
    ],
)
def test_other_variants_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({**TINY, **change})


def test_a_causal_gemma_is_refused():
    causal = {key: value for key, value in TINY.items() if key != "use_bidirectional_attention"}
    with pytest.raises(ValueError, match="expected use_bidirectional_attention to be True"):
        BertCore({"model_type": "gemma3_text", **causal})


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "gemma3_text", **TINY}, length=20, dtypes=(mx.bfloat16, mx.float32))


def test_float16_is_refused():
    core = BertCore({"model_type": "gemma3_text", **TINY}).eval()
    core.set_dtype(mx.float16)
    with pytest.raises(ValueError, match="expected weights in float32 or bfloat16 but got float16"):
        core(mx.array([[5, 6, 7]]))
