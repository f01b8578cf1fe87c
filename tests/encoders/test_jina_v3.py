"""Jina embeddings v3 against transformers, in today's spelling and in that of Jina's own code, with its adapters."""

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from mlx_bert.core import BertCore
from mlx_bert.encoders import find_encoder, jina_v3, roberta
from reference import redraw, to_mlx

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
RANK, ALPHA = 3, 2.0
OLDER = {
    "model_type": "xlm-roberta",
    **TINY,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 500.0,
    "lora_adaptations": TASKS,
    "lora_rank": RANK,
    "lora_alpha": ALPHA,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "load_trained_adapters": True,
    "use_flash_attn": True,
    "matryoshka_dimensions": [8, 16, 32],
    "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
}
RENAMED = (
    ("embeddings.LayerNorm", "emb_ln"),
    ("layers.", "encoder.layers."),
    ("self_attn.o_proj", "mixer.out_proj"),
    ("post_attention_layernorm", "norm1"),
    ("post_mlp_layernorm", "norm2"),
)
IDS = np.array([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def build(**options):
    return transformers.JinaEmbeddingsV3Model(transformers.JinaEmbeddingsV3Config(**{**TINY, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_act": "gelu_new", "type_vocab_size": 2, "layer_norm_eps": 1e-2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "num_attention_heads": 2},
    ],
)
def test_parity(assert_parity, options):
    core = assert_parity(build(**options))
    assert core.encoder.pooler is not None


def test_parity_with_positions(assert_parity):
    assert_parity(build(), position_ids=np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]]))


def with_adapters(weights):
    """Transformers' names -> those of the original checkpoint, packed and parametrised; and what each task adds."""
    packed = {}
    for name, array in weights.items():
        for new, old in RENAMED:
            name = name.replace(new, old)
        packed[name] = array
    for layer in range(TINY["num_hidden_layers"]):
        stem = f"encoder.layers.{layer}"
        for suffix in ("weight", "bias"):
            parts = [packed.pop(f"{stem}.self_attn.{part}_proj.{suffix}") for part in "qkv"]
            packed[f"{stem}.mixer.Wqkv.{suffix}"] = torch.cat(parts)
    file, changes = {}, {}
    generator = torch.Generator().manual_seed(3)
    for name, array in packed.items():
        if array.ndim < 2:
            file[f"roberta.{name}"] = array
            continue
        rows, columns = array.shape
        shapes = ((rows, RANK), (RANK, columns)) if "_embeddings" in name else ((RANK, columns), (rows, RANK))
        a, b = (torch.randn((len(TASKS), *shape), generator=generator) * 0.3 for shape in shapes)
        stem = "roberta." + name.removesuffix(".weight") + ".parametrizations.weight"
        file |= {f"{stem}.original": array, f"{stem}.0.lora_A": a, f"{stem}.0.lora_B": b}
        changes[name] = (a @ b if "_embeddings" in name else b @ a) * (ALPHA / RANK)
    return file, changes


@pytest.mark.parametrize("task", [None, "retrieval.query", "text-matching"])
def test_original_checkpoint(tmp_path, task):
    reference = redraw(build(rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    file, changes = with_adapters({name: array.clone() for name, array in reference.state_dict().items()})
    core = BertCore({**OLDER, "lora_task": task})
    own, others = core.names.split(file)
    assert others == []
    core.load_weights_from(to_mlx({name: file[stored] for name, stored in own.items()}))
    with torch.no_grad():
        if task:
            for name, change in changes.items():
                for new, old in RENAMED:
                    name = name.replace(old, new)
                parts = [name.replace("mixer.Wqkv", f"self_attn.{p}_proj") for p in ("qkv" if "Wqkv" in name else "-")]
                for part, share in zip(parts, change[TASKS.index(task)].chunk(len(parts)), strict=True):
                    reference.state_dict()[part].add_(share)
        expected = reference(torch.tensor(IDS))
    got = core.eval()(mx.array(IDS))
    np.testing.assert_allclose(np.array(got.last_hidden_state), expected.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(np.array(got.pooler_output), expected.pooler_output.numpy(), atol=1e-4)
    # What is written has the adapter inside, today's names and keys: transformers itself reads it.
    core.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    assert isinstance(again, transformers.JinaEmbeddingsV3Model)
    with torch.no_grad():
        states = again(torch.tensor(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(states, expected.last_hidden_state.numpy(), atol=1e-4)
    loaded = BertCore.from_pretrained(tmp_path)
    assert mx.array_equal(loaded(mx.array(IDS)).last_hidden_state, got.last_hidden_state)
    assert loaded.config.merged_lora_task == task
    with pytest.raises(ValueError, match=r"expected adapters for lora_task 'separation' but the weights have none"):
        BertCore.from_pretrained(tmp_path, lora_task="separation")


def test_a_config_that_says_xlm_roberta_is_told_by_its_keys():
    assert find_encoder(OLDER) is jina_v3
    assert find_encoder({**OLDER, "position_embedding_type": "absolute"}) is roberta
    assert jina_v3.Config.from_dict(OLDER).rotary.base == 500.0


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"expected lora_task to be one of retrieval\.query, .* but got 'ranking'"):
        BertCore({**OLDER, "lora_task": "ranking"})


def test_an_adapter_without_a_part_is_refused():
    stem = "emb.parametrizations.weight"
    weights = {f"{stem}.original": mx.ones((4, 4)), f"{stem}.0.lora_A": mx.ones((5, 4, 3))}
    with pytest.raises(ValueError, match=r"missing tensors: emb\.parametrizations\.weight\.0\.lora_B"):
        jina_v3.merge_adapter(weights, jina_v3.Config.from_dict(OLDER))


def test_half_precision(assert_half_precision):
    assert_half_precision({"model_type": "jina_embeddings_v3", **TINY})
