"""Task checkpoints in the names of an architecture's own code: read as they are, and converted to transformers'."""

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_map
from remote_checkpoints import CONFIGS, older_names

from convert import convert
from convert.task_heads import head_tensors
from mlx_bert.checkpoint import entries_of, read_json, write_json, write_safetensors
from mlx_bert.core import BertCore
from mlx_bert.model import BertWithHead

D, V = 32, 99
DENSE = {"dense.weight": (D, D), "dense.bias": (D,)}
CLASSIFIER = {"classifier.weight": (3, D), "classifier.bias": (3,)}
JINA = {key: CONFIGS["jina_embeddings_v3"][key] for key in CONFIGS["jina_embeddings_v3"] if "lora" not in key}
# name -> config, prefix, class of that code, the head's tensors, transformers' class
CASES = {
    "gte reranker": (CONFIGS["gte"], "new.", "NewForSequenceClassification", CLASSIFIER, "Gte"),
    "gte tokens": (CONFIGS["gte"], "new.", "NewForTokenClassification", CLASSIFIER, "Gte"),
    "gte words": (
        CONFIGS["gte"],
        "new.",
        "NewForMaskedLM",
        {
            **{f"lm_head.{name}": shape for name, shape in DENSE.items()},
            "lm_head.norm.weight": (D,),
            "lm_head.norm.bias": (D,),
            "lm_head.decoder.bias": (V,),
        },
        "Gte",
    ),
    "nomic reranker": (
        CONFIGS["nomic_bert"],
        "bert.",
        "NomicBertForSequenceClassification",
        {**CLASSIFIER, **{f"bert.pooler.{name}": shape for name, shape in DENSE.items()}},
        "NomicBert",
    ),
    "nomic words": (
        CONFIGS["nomic_bert"],
        "bert.",
        "NomicBertForPreTraining",
        {
            "cls.predictions.transform.dense.weight": (D, D),
            "cls.predictions.transform.layer_norm.weight": (D,),
            "cls.predictions.transform.layer_norm.bias": (D,),
        },
        "NomicBert",
    ),
    "jina classes": (
        JINA,
        "roberta.",
        "XLMRobertaForSequenceClassification",
        {
            **{f"classifier.{name}": shape for name, shape in DENSE.items()},
            "classifier.out_proj.weight": (3, D),
            "classifier.out_proj.bias": (3,),
        },
        "JinaEmbeddingsV3",
    ),
    "eurobert classes": (
        {**CONFIGS["eurobert"], "clf_pooling": "mean"},
        "model.",
        "EuroBertForSequenceClassification",
        {**DENSE, **CLASSIFIER},
        "EuroBert",
    ),
}


def spread(array: mx.array) -> mx.array:
    """Random weights that are large enough for a wrong activation or pooling to show."""
    return mx.random.normal(array.shape) * 0.3


@pytest.mark.parametrize("case", CASES)
def test_the_logits_stay(tmp_path, case):
    config, prefix, architecture, head, family = CASES[case]
    mx.random.seed(0)
    core = BertCore(config)
    core.update(tree_map(spread, core.parameters()))
    tensors = {f"{prefix}{name}": array for name, array in older_names(core).items() if not name.startswith("pooler.")}
    tensors |= {name: spread(mx.zeros(shape)) for name, shape in head.items()}
    if case == "nomic words":  # tied, and in the file nevertheless
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    if case == "gte reranker":
        tensors |= {f"new.pooler.{name}": spread(mx.zeros(shape)) for name, shape in DENSE.items()}
    config = {**config, "architectures": [architecture], "id2label": {"0": "a", "1": "b", "2": "c"}}
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", config)
    write_safetensors(source / "model.safetensors", entries_of(tensors))
    assert head.keys() <= head_tensors(config, tensors)

    ids, mask = np.random.default_rng(0).integers(5, V, (3, 7)), np.ones((3, 7), dtype=np.int64)
    mask[1, 4:] = 0
    report = convert(source, tmp_path / "out")
    kind = getattr(transformers, read_json(report / "config.json")["architectures"][0])
    assert kind.__name__ == family + "For" + architecture.partition("For")[2].replace("PreTraining", "MaskedLM")
    theirs, loaded = kind.from_pretrained(report, output_loading_info=True, attn_implementation="eager")
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    with torch.no_grad():
        wanted = theirs.eval()(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    assert np.abs(wanted).max() > 0.1
    for folder in (source, report):
        got = np.array(BertWithHead.from_pretrained(folder)(mx.array(ids), mx.array(mask))["logits"])
        difference = np.abs(got - wanted)
        assert (difference[mask == 1] if got.ndim == 3 else difference).max() < 1e-4
