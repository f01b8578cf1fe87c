"""RoBERTa, XLM-RoBERTa and CamemBERT against transformers."""

import mlx.core as mx
import pytest
import transformers

from mlx_bert.core import BertCore
from mlx_bert.encoders.roberta import token_positions
from reference import redraw, to_mlx

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (transformers.RobertaModel, transformers.RobertaConfig),
        (transformers.XLMRobertaModel, transformers.XLMRobertaConfig),
        (transformers.CamembertModel, transformers.CamembertConfig),
    ],
)
def test_parity(assert_parity, model, config):
    assert_parity(model(config(**TINY)))


@pytest.mark.parametrize(
    "options", [{"pad_token_id": 4}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-2, "type_vocab_size": 2}]
)
def test_parity_of_options(assert_parity, options):
    assert_parity(transformers.RobertaModel(transformers.RobertaConfig(**{**TINY, **options})))


def test_positions_start_behind_the_pad_id_and_skip_padding():
    ids = mx.array([[1, 1, 7, 8], [7, 8, 9, 1]])
    wanted = mx.array([[1, 1, 2, 3], [2, 3, 4, 1]])
    assert mx.array_equal(token_positions(ids, None, 1), wanted)
    other = mx.array([[5, 5, 7, 8], [7, 8, 9, 5]])
    assert mx.array_equal(token_positions(other, mx.array([[0, 0, 1, 1], [1, 1, 1, 0]]), 1), wanted)


def test_the_longest_row_leaves_room_for_the_offset():
    core = BertCore({"model_type": "roberta", **TINY, "pad_token_id": 1})
    core(mx.full((1, 38), 7))
    with pytest.raises(ValueError, match="at most 38 tokens a row but got 39"):
        core(mx.full((1, 39), 7))


def test_segments_of_a_pair_do_not_leave_the_single_segment_table():
    core = BertCore({"model_type": "roberta", **TINY}).eval()
    ids = mx.full((1, 6), 7)
    segments = mx.array([[0, 0, 0, 1, 1, 1]])
    assert mx.array_equal(core(ids, None, segments).last_hidden_state, core(ids).last_hidden_state)


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "roberta", **TINY})


def test_names_of_jina_reranker_v2():
    reference = redraw(transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**TINY)))
    config = reference.config.to_dict()
    own, older = BertCore(config), BertCore({**config, "use_flash_attn": True, "auto_map": {"AutoModel": "x--y.Z"}})
    own.load_weights_from(to_mlx(reference.state_dict()))
    file = {}
    for name, array in to_mlx(reference.state_dict()).items():
        for new, old in (
            ("embeddings.LayerNorm", "emb_ln"),
            ("encoder.layer.", "encoder.layers."),
            ("attention.output.dense", "mixer.out_proj"),
            ("attention.output.LayerNorm", "norm1"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("output.LayerNorm", "norm2"),
        ):
            name = name.replace(new, old)
        file[f"roberta.{name}"] = array
    for layer in range(2):
        for suffix in ("weight", "bias"):
            stem = f"roberta.encoder.layers.{layer}"
            parts = [file.pop(f"{stem}.attention.self.{part}.{suffix}") for part in ("query", "key", "value")]
            file[f"{stem}.mixer.Wqkv.{suffix}"] = mx.concatenate(parts)
    file["classifier.dense.weight"] = mx.zeros((32, 32))
    names, others = older.names.split(file)
    assert others == ["classifier.dense.weight"]
    older.load_weights_from({name: file[stored] for name, stored in names.items()})
    ids = mx.array([[7, 8, 9, 1]])
    assert mx.array_equal(own.eval()(ids).pooler_output, older.eval()(ids).pooler_output)
    assert older.weights_on_disk().keys() == reference.state_dict().keys()
    assert not {"auto_map", "use_flash_attn"} & older.stored_config().keys()
