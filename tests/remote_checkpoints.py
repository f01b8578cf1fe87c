"""Configs and names of checkpoints that came to the Hub with code of their own."""

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
CONFIGS = {
    "nomic_bert": {
        "model_type": "nomic_bert",
        "vocab_size": 99,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 40,
        "n_positions": 64,
        "rotary_emb_base": 1000,
        "activation_function": "swiglu",
        "prenorm": False,
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    },
    "gte": {
        "model_type": "new",
        **SIZES,
        "rope_theta": 500.0,
        "rope_scaling": {"type": "ntk", "factor": 2.0},
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    },
    "jina_embeddings_v3": {
        "model_type": "xlm-roberta",
        **SIZES,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 500.0,
        "lora_adaptations": ["a", "b"],
        "lora_rank": 4,
        "lora_alpha": 1,
        "pad_token_id": 1,
        "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
    },
    "eurobert": {
        "model_type": "eurobert",
        **SIZES,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rope_theta": 9.0,
        "auto_map": {"AutoModel": "modeling_eurobert.EuroBertModel"},
    },
    "bert": {
        "model_type": "bert",
        **SIZES,
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    },
}


def older_names(core: BertCore) -> dict[str, mx.array]:
    """The weights in the older spelling of their name map, if it has one."""
    older = core.names.older
    result = {}
    for name, array in tree_flatten(core.encoder.parameters()):
        path, _, suffix = name.rpartition(".")
        number = next((part for part in path.split(".") if part.isdigit()), "")
        disks = older.get(path.replace(f".{number}.", ".{n}.", 1) if number else path)
        if disks is None:
            result |= core.names.to_disk({name: array})
            continue
        for disk, part in zip(disks, mx.split(array, len(disks)), strict=True):
            result[f"{disk.replace('{n}', number)}.{suffix}"] = part
    return result
