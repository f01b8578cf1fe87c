"""The table of Hugging Face's task heads: one row per (architecture, task).

A row says which options of our head give the same arithmetic, and under which names the checkpoint keeps each module
of the head. Names are complete, with the encoder's prefix: a pooler that the checkpoint counts as part of the encoder
(`bert.pooler.dense`) is part of the head here, because only the head uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mlx_bert.encoders import jina_bert, jina_v3

Config = Mapping[str, Any]

_GELU_TANH = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"}


@dataclass(frozen=True)
class HeadMap:
    """One row of the table.

    Args:
        options: From the checkpoint's config, with every default filled in, to the `HeadConfig` fields that give its
            arithmetic.
        names: Module path in the head -> module path in the checkpoint.
        bias: Masked LM only: where the checkpoint keeps the decoder's bias beside `names["output"]`.
        always_tied: Masked LM only: the decoder is the word embeddings, whatever the config says.
        tied_by_default: Masked LM only: what holds when the config says nothing.
        older: Module path in the checkpoint -> its spelling in the architecture's own code, from before transformers
            had it. It is read, never written.
        older_has_no_biases: Masked LM only: that code had no biases, here they are zero.
    """

    options: Callable[[Config], dict[str, Any]]
    names: Mapping[str, str]
    bias: str | None = None
    always_tied: bool = False
    tied_by_default: bool = True
    older: Mapping[str, str] = field(default_factory=dict)
    older_has_no_biases: bool = False


def _activation(name: str | None) -> str:
    return "gelu_tanh" if name in _GELU_TANH else name or "linear"


def _dropout(config: Config, key: str = "classifier_dropout", default: float | None = None) -> float:
    given = config.get(key, default)
    return config.get("hidden_dropout_prob", 0.1) if given is None else given


def _plain(config: Config, key: str = "classifier_dropout", default: float | None = None) -> dict[str, Any]:
    """Dropout, then the classifier."""
    return {"input_dropout": _dropout(config, key, default)}


def _pooled(config: Config, key: str = "classifier_dropout", default: float | None = None) -> dict[str, Any]:
    """Tanh pooler on the first token, dropout, classifier."""
    return {"pooling_type": "pooler", **_plain(config, key, default)}


def _dense(config: Config, activation: str | None, before: float, behind: float) -> dict[str, Any]:
    """First token, dropout, dense, activation, dropout, classifier."""
    return {
        "hidden_sizes": [config["hidden_size"]],
        "use_layer_norm": False,
        "activation": _activation(activation),
        "input_dropout": before,
        "dropout_prob": behind,
    }


def _dense_on_first(activation: str, key: str = "classifier_dropout") -> Callable[[Config], dict[str, Any]]:
    """The same dropout on both sides of the dense layer."""
    return lambda config: _dense(config, activation, _dropout(config, key), _dropout(config, key))


def _transform(activation: str | None = None, embedding_size: bool = False) -> Callable[[Config], dict[str, Any]]:
    """BERT's masked LM transform: dense, activation, LayerNorm; then the decoder. Some narrow to the embeddings."""

    def options(config: Config) -> dict[str, Any]:
        size = config.get("embedding_size") if embedding_size else None
        return {
            "hidden_sizes": [size or config["hidden_size"]],
            "norm_after_activation": True,
            "activation": _activation(activation or config.get("hidden_act", "gelu")),
            "normalization_options": {"eps": config.get("layer_norm_eps", 1e-12)},
            "dropout_prob": 0.0,
        }

    return options


def _distilbert_lm(config: Config) -> dict[str, Any]:
    return _transform(config.get("activation", "gelu"))(config)


def _distilbert_pooled(config: Config) -> dict[str, Any]:
    return _dense(config, "relu", 0.0, config.get("seq_classif_dropout", 0.2))


def _electra_summary(config: Config) -> dict[str, Any]:
    kind = config.get("summary_type", "first") if config.get("summary_use_proj", True) else "none"
    if kind != "first":
        raise ValueError(
            f"[convert] expected summary_type 'first' with summary_use_proj but got {kind!r}. This multiple choice "
            "head is not supported; load the checkpoint as an encoder."
        )
    before, behind = config.get("summary_first_dropout", 0.0), config.get("summary_last_dropout", 0.1)
    return _dense(config, config.get("summary_activation", "gelu"), before, behind)


def _deberta_pooled(config: Config) -> dict[str, Any]:
    """The ContextPooler of DeBERTa, which stands outside the encoder."""
    activation, before = config.get("pooler_hidden_act", "gelu"), config.get("pooler_dropout", 0.0)
    return _dense(config, activation, before, _dropout(config, "cls_dropout"))


def _modernbert(config: Config) -> dict[str, Any]:
    """Pool, then dense, activation, norm, dropout, classifier; token heads the same without pooling."""
    return {
        "pooling_type": config.get("classifier_pooling", "cls"),
        "hidden_sizes": [config["hidden_size"]],
        "hidden_bias": config.get("classifier_bias", False),
        "norm_after_activation": True,
        "activation": _activation(config.get("classifier_activation", "gelu")),
        # A LayerNorm without bias is the zero-centred RMS norm.
        "normalization_type": "layer_norm" if config.get("norm_bias", False) else "zero_centered_rms_norm",
        "normalization_options": {"eps": config.get("norm_eps", 1e-5)},
        "dropout_prob": config.get("classifier_dropout", 0.0),
    }


def _modernbert_lm(config: Config) -> dict[str, Any]:
    return {
        **_modernbert(config),
        "pooling_type": "cls",
        "dropout_prob": 0.0,
        "output_bias": config.get("decoder_bias", True),
    }


def _eurobert(config: Config) -> dict[str, Any]:
    """Pool, dense, GELU, classifier; there is no dropout."""
    pooling = {"bos": "cls", "mean": "mean"}.get(_eurobert_pooling(config))
    if pooling is None:
        raise ValueError(
            "[convert] expected classifier_pooling 'bos', 'mean' or 'late' but got "
            f"{_eurobert_pooling(config)!r}. Correct config.json."
        )
    return {"pooling_type": pooling, **_dense(config, "gelu", 0.0, 0.0)}


def _eurobert_late(config: Config) -> dict[str, Any]:
    """Dense and GELU on every token, then the mean; the classifier is linear, so it may come behind the mean."""
    return {"pooling_type": "pooler", "pooling_options": {"activation": "gelu", "tokens": "all"}}


def _eurobert_lm(config: Config) -> dict[str, Any]:
    return {"output_bias": config.get("mlp_bias", False)}


def _eurobert_pooling(config: Config) -> str:
    return config.get("classifier_pooling") or config.get("clf_pooling") or "late"  # the second is its own code's key


def _last(config: Config) -> dict[str, Any]:
    """The last token, and a classifier without bias."""
    return {"pooling_type": "last", "output_bias": False}


BLOCK, NORM = "projection.blocks.0.dense", "projection.blocks.0.norm"

_BERT = {
    "masked_lm": HeadMap(
        _transform(),
        {
            BLOCK: "cls.predictions.transform.dense",
            NORM: "cls.predictions.transform.LayerNorm",
            "output": "cls.predictions.decoder",
        },
        bias="cls.predictions.bias",
    ),
    "sequence_classification": HeadMap(_pooled, {"pooling.dense": "bert.pooler.dense", "output": "classifier"}),
    "token_classification": HeadMap(_plain, {"output": "classifier"}),
    "question_answering": HeadMap(lambda config: {}, {"output": "qa_outputs"}),
    "multiple_choice": HeadMap(_pooled, {"pooling.dense": "bert.pooler.dense", "output": "classifier"}),
}
_ROBERTA = {
    "masked_lm": HeadMap(
        _transform("gelu"),
        {BLOCK: "lm_head.dense", NORM: "lm_head.layer_norm", "output": "lm_head.decoder"},
        bias="lm_head.bias",
    ),
    "sequence_classification": HeadMap(
        _dense_on_first("tanh"), {BLOCK: "classifier.dense", "output": "classifier.out_proj"}
    ),
    "token_classification": HeadMap(_plain, {"output": "classifier"}),
    "question_answering": HeadMap(lambda config: {}, {"output": "qa_outputs"}),
    "multiple_choice": HeadMap(_pooled, {"pooling.dense": "roberta.pooler.dense", "output": "classifier"}),
}
_MODERNBERT_NAMES = {BLOCK: "head.dense", NORM: "head.norm", "output": "classifier"}
_MODERNBERT = {
    "masked_lm": HeadMap(_modernbert_lm, {**_MODERNBERT_NAMES, "output": "decoder"}, bias="decoder.bias"),
    "sequence_classification": HeadMap(_modernbert, _MODERNBERT_NAMES),
    "token_classification": HeadMap(_modernbert, _MODERNBERT_NAMES),
    "question_answering": HeadMap(_modernbert, _MODERNBERT_NAMES),
    "multiple_choice": HeadMap(_modernbert, _MODERNBERT_NAMES),
}

_DISTILBERT_POOLED = HeadMap(_distilbert_pooled, {BLOCK: "pre_classifier", "output": "classifier"})
_DISTILBERT = {
    "masked_lm": HeadMap(
        _distilbert_lm,
        {BLOCK: "vocab_transform", NORM: "vocab_layer_norm", "output": "vocab_projector"},
        bias="vocab_projector.bias",
    ),
    "sequence_classification": _DISTILBERT_POOLED,
    "token_classification": HeadMap(partial(_plain, key="dropout", default=0.1), {"output": "classifier"}),
    "question_answering": HeadMap(partial(_plain, key="qa_dropout", default=0.1), {"output": "qa_outputs"}),
    "multiple_choice": _DISTILBERT_POOLED,
}
_MPNET = {
    **_ROBERTA,
    "sequence_classification": HeadMap(
        _dense_on_first("tanh", "hidden_dropout_prob"), _ROBERTA["sequence_classification"].names
    ),
    "token_classification": HeadMap(partial(_plain, key="hidden_dropout_prob"), {"output": "classifier"}),
    "multiple_choice": HeadMap(
        partial(_pooled, key="hidden_dropout_prob"), {"pooling.dense": "mpnet.pooler.dense", "output": "classifier"}
    ),
}
_ELECTRA = {
    "masked_lm": HeadMap(
        _transform("gelu", embedding_size=True),
        {
            BLOCK: "generator_predictions.dense",
            NORM: "generator_predictions.LayerNorm",
            "output": "generator_lm_head",
        },
        bias="generator_lm_head.bias",
    ),
    "sequence_classification": HeadMap(_dense_on_first("gelu"), _ROBERTA["sequence_classification"].names),
    "token_classification": _BERT["token_classification"],
    "question_answering": _BERT["question_answering"],
    "multiple_choice": HeadMap(_electra_summary, {BLOCK: "sequence_summary.summary", "output": "classifier"}),
}
_ALBERT_DROPOUT = {"key": "classifier_dropout_prob", "default": 0.1}
_ALBERT_POOLED = HeadMap(
    partial(_pooled, **_ALBERT_DROPOUT), {"pooling.dense": "albert.pooler", "output": "classifier"}
)
_ALBERT = {
    "masked_lm": HeadMap(
        _transform(embedding_size=True),
        {BLOCK: "predictions.dense", NORM: "predictions.LayerNorm", "output": "predictions.decoder"},
        bias="predictions.bias",
    ),
    "sequence_classification": _ALBERT_POOLED,
    "token_classification": HeadMap(partial(_plain, **_ALBERT_DROPOUT), {"output": "classifier"}),
    "question_answering": _BERT["question_answering"],
    "multiple_choice": _ALBERT_POOLED,
}
_DEBERTA_POOLED = HeadMap(_deberta_pooled, {BLOCK: "pooler.dense", "output": "classifier"})
_DEBERTA = {
    "masked_lm": HeadMap(_transform(embedding_size=True), _BERT["masked_lm"].names, bias="cls.predictions.bias"),
    "sequence_classification": _DEBERTA_POOLED,
    "token_classification": HeadMap(partial(_plain, key="hidden_dropout_prob"), {"output": "classifier"}),
    "question_answering": _BERT["question_answering"],
    "multiple_choice": _DEBERTA_POOLED,
}
_DEBERTA_LM = HeadMap(
    _transform(),
    {
        BLOCK: "lm_predictions.lm_head.dense",
        NORM: "lm_predictions.lm_head.LayerNorm",
        "output": "lm_predictions.lm_head.decoder",
    },
    bias="lm_predictions.lm_head.bias",
    always_tied=True,
)

_NOMIC = {
    "masked_lm": HeadMap(
        _transform(),
        {**_BERT["masked_lm"].names, NORM: "cls.predictions.transform.layer_norm"},
        bias="cls.predictions.bias",
        older_has_no_biases=True,
    ),
    "sequence_classification": HeadMap(
        _pooled,
        {"pooling.dense": "nomic_bert.pooler.dense", "output": "classifier"},
        older={"nomic_bert.pooler.dense": "bert.pooler.dense"},
    ),
    "token_classification": _BERT["token_classification"],
}
_GTE = {
    "masked_lm": replace(
        _ROBERTA["masked_lm"], bias="lm_head.decoder.bias", older={"lm_head.layer_norm": "lm_head.norm"}
    ),
    "sequence_classification": HeadMap(
        _pooled,
        {"pooling.dense": "gte.pooler.dense", "output": "classifier"},
        older={"gte.pooler.dense": "new.pooler.dense"},
    ),
    "token_classification": _BERT["token_classification"],
}
_JINA_V3 = {task: row for task, row in _ROBERTA.items() if task != "multiple_choice"}
_EUROBERT = {
    "masked_lm": HeadMap(_eurobert_lm, {"output": "lm_head"}, bias="lm_head.bias", tied_by_default=False),
    "sequence_classification": HeadMap(_eurobert, {BLOCK: "dense", "output": "classifier"}),
    "token_classification": HeadMap(lambda config: {}, {"output": "classifier"}),
}
_EUROBERT_LATE = HeadMap(_eurobert_late, {"pooling.dense": "dense", "output": "classifier"})
_GEMMA3 = {"sequence_classification": HeadMap(_last, {"output": "score"})}

TASK_HEADS: dict[str, dict[str, HeadMap]] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "camembert": _ROBERTA,
    "deberta-v2": _DEBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "eurobert": _EUROBERT,
    "gemma3_text": _GEMMA3,
    "gte": _GTE,
    "jina_embeddings_v3": _JINA_V3,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "nomic_bert": _NOMIC,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""model_type -> task -> row."""

CLASS_PREFIX = {
    "albert": "Albert",
    "bert": "Bert",
    "camembert": "Camembert",
    "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "eurobert": "EuroBert",
    "gemma3_text": "Gemma3Text",
    "gte": "Gte",
    "jina_embeddings_v3": "JinaEmbeddingsV3",
    "modernbert": "ModernBert",
    "mpnet": "MPNet",
    "nomic_bert": "NomicBert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
}
"""model_type -> what transformers' class names start with."""

# Heads of pre-training that stand beside the masked LM and are not used: next sentence, sentence order.
UNUSED_HEADS = ("cls.seq_relationship", "sop_classifier.classifier")


def family_of(config: Config) -> str:
    """Return the key of `TASK_HEADS` for a config: its `model_type`, but for those that say another one's."""
    if jina_v3.claims(config):
        return "jina_embeddings_v3"
    model_type = config.get("model_type", "")
    return "gte" if model_type == "new" else model_type


def is_in_transformers(config: Config) -> bool:
    """Return whether transformers has the architecture; it has none for Jina BERT, which says `model_type` bert."""
    return not jina_bert.claims(config)


def find_row(config: Config, task: str | None) -> HeadMap | None:
    """Return the row of a task for a checkpoint's config, or None."""
    family = family_of(config)
    if family == "deberta-v2" and task == "masked_lm" and not config.get("legacy", True):
        return _DEBERTA_LM
    if family == "eurobert" and task == "sequence_classification" and _eurobert_pooling(config) == "late":
        return _EUROBERT_LATE
    return TASK_HEADS.get(family, {}).get(task or "")
