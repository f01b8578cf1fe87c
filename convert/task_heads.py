"""Hugging Face task heads <-> `heads/`: one table row per (architecture, task), read in both directions.

A row says which head options give the same arithmetic, and under which names the checkpoint keeps each module of the
head. Names are complete, with the encoder's prefix: a pooler that the checkpoint counts as part of the encoder
(`bert.pooler.dense`) is part of the head here, because only the head uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from heads import BaseKaggleHead, HeadConfig

Config = Mapping[str, Any]

_TASK_OF_ARCHITECTURE = {
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForMultipleChoice": "multiple_choice",
}
_TASK_OF_HEAD = {
    "multiclass_classification": "sequence_classification",
    "multilabel_classification": "sequence_classification",
    "text_classification": "sequence_classification",
    "regression": "sequence_classification",
    "token_classification": "token_classification",
    "question_answering": "question_answering",
    "multiple_choice": "multiple_choice",
    "text_generation": "masked_lm",
}
_GELU_TANH = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"}
_OLD_SUFFIXES = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class HeadMap:
    """One row of the table.

    Args:
        options: From the checkpoint's config to the `HeadConfig` fields that give its arithmetic.
        names: Module path in the head -> module path in the checkpoint.
        bias: Masked LM only: where the checkpoint keeps the decoder's bias beside `names["output"]`.
    """

    options: Callable[[Config], dict[str, Any]]
    names: Mapping[str, str]
    bias: str | None = None


def _activation(name: str) -> str:
    return "gelu_tanh" if name in _GELU_TANH else name


def _dropout(config: Config) -> float:
    given = config.get("classifier_dropout")
    return config.get("hidden_dropout_prob", 0.1) if given is None else given


def _plain(config: Config) -> dict[str, Any]:
    """Dropout, then the classifier."""
    return {"input_dropout": _dropout(config)}


def _bert_pooled(config: Config) -> dict[str, Any]:
    """Tanh pooler on the first token, dropout, classifier."""
    return {"pooling_type": "pooler", **_plain(config)}


def _dense_on_first(activation: str) -> Callable[[Config], dict[str, Any]]:
    """First token, dropout, dense, activation, dropout, classifier."""

    def options(config: Config) -> dict[str, Any]:
        dropout = _dropout(config)
        return {
            "hidden_sizes": [config["hidden_size"]],
            "use_layer_norm": False,
            "activation": activation,
            "input_dropout": dropout,
            "dropout_prob": dropout,
        }

    return options


def _transform(activation: str | None = None) -> Callable[[Config], dict[str, Any]]:
    """BERT's masked LM transform: dense, activation, LayerNorm; then the decoder."""

    def options(config: Config) -> dict[str, Any]:
        return {
            "hidden_sizes": [config["hidden_size"]],
            "norm_after_activation": True,
            "activation": _activation(activation or config.get("hidden_act", "gelu")),
            "normalization_options": {"eps": config.get("layer_norm_eps", 1e-12)},
            "dropout_prob": 0.0,
        }

    return options


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


_BLOCK, _NORM = "projection.blocks.0.dense", "projection.blocks.0.norm"

_BERT = {
    "masked_lm": HeadMap(
        _transform(),
        {
            _BLOCK: "cls.predictions.transform.dense",
            _NORM: "cls.predictions.transform.LayerNorm",
            "output": "cls.predictions.decoder",
        },
        bias="cls.predictions.bias",
    ),
    "sequence_classification": HeadMap(_bert_pooled, {"pooling.dense": "bert.pooler.dense", "output": "classifier"}),
    "token_classification": HeadMap(_plain, {"output": "classifier"}),
    "question_answering": HeadMap(lambda config: {}, {"output": "qa_outputs"}),
    "multiple_choice": HeadMap(_bert_pooled, {"pooling.dense": "bert.pooler.dense", "output": "classifier"}),
}
_ROBERTA = {
    "masked_lm": HeadMap(
        _transform("gelu"),
        {_BLOCK: "lm_head.dense", _NORM: "lm_head.layer_norm", "output": "lm_head.decoder"},
        bias="lm_head.bias",
    ),
    "sequence_classification": HeadMap(
        _dense_on_first("tanh"), {_BLOCK: "classifier.dense", "output": "classifier.out_proj"}
    ),
    "token_classification": HeadMap(_plain, {"output": "classifier"}),
    "question_answering": HeadMap(lambda config: {}, {"output": "qa_outputs"}),
    "multiple_choice": HeadMap(_bert_pooled, {"pooling.dense": "roberta.pooler.dense", "output": "classifier"}),
}
_MODERNBERT_NAMES = {_BLOCK: "head.dense", _NORM: "head.norm", "output": "classifier"}
_MODERNBERT = {
    "masked_lm": HeadMap(_modernbert_lm, {**_MODERNBERT_NAMES, "output": "decoder"}, bias="decoder.bias"),
    "sequence_classification": HeadMap(_modernbert, _MODERNBERT_NAMES),
    "token_classification": HeadMap(_modernbert, _MODERNBERT_NAMES),
    "question_answering": HeadMap(_modernbert, _MODERNBERT_NAMES),
    "multiple_choice": HeadMap(_modernbert, _MODERNBERT_NAMES),
}

TASK_HEADS: dict[str, dict[str, HeadMap]] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "modernbert": _MODERNBERT,
}
"""model_type -> task -> row."""

_CLASS_PREFIX = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "modernbert": "ModernBert",
}


def task_of(config: Config) -> str | None:
    """Return the task that `architectures[0]` names, or None for a bare encoder or an unknown one."""
    for architecture in list(config.get("architectures") or [])[:1]:
        for suffix, task in _TASK_OF_ARCHITECTURE.items():
            if architecture.endswith(suffix):
                return task
    return None


def _row(config: Config) -> HeadMap | None:
    return TASK_HEADS.get(config.get("model_type", ""), {}).get(task_of(config) or "")


def number_of_labels(config: Config) -> int:
    """Return the number of labels of a checkpoint: `num_labels`, else the size of `id2label`, else 2."""
    return int(config.get("num_labels") or len(config.get("id2label") or {}) or 2)


def head_tensors(config: Config, tensor_names: Iterable[str]) -> set[str]:
    """Return which tensors of a checkpoint belong to its task head, also those that only repeat another tensor."""
    row = _row(config)
    if row is None:
        return set()
    prefixes = (*row.names.values(), "cls.seq_relationship")
    return {name for name in tensor_names if name == row.bias or name.rpartition(".")[0] in prefixes}


def head_from_checkpoint(config: Config, tensor_names: Iterable[str]) -> HeadConfig | None:
    """Return the head that a Hugging Face checkpoint carries.

    Args:
        config: Parsed `config.json`.
        tensor_names: Names of the tensors in the checkpoint.

    Returns:
        The config of the equal head, or None if the checkpoint is a bare encoder: it names no task that is known here,
        or holds no tensor of the head's own.
    """
    row, task = _row(config), task_of(config)
    present = {name.rpartition(".")[0] for name in tensor_names}
    # A pooler alone does not make a classifier, and a tied decoder has no weight of its own.
    decisive = row.names.get(_BLOCK, row.names["output"]) if row else None
    if row is None or decisive not in present:
        return None
    return _head_config(config, task, row)


def _head_config(config: Config, task: str, row: HeadMap) -> HeadConfig:
    labels = number_of_labels(config)
    kinds: dict[str, tuple[str, int, dict[str, Any]]] = {
        "masked_lm": (
            "text_generation",
            config.get("vocab_size", 1),
            {"objective": "mlm", "tie_embeddings": config.get("tie_word_embeddings", True)},
        ),
        "token_classification": ("token_classification", labels, {}),
        "question_answering": ("question_answering", 2, {}),
        "multiple_choice": ("multiple_choice", 1, {}),
    }
    head_type, size, extra = kinds.get(task) or _sequence_kind(config, labels)
    return HeadConfig(
        head_type=head_type, input_size=config["hidden_size"], output_size=size, extra=extra, **row.options(config)
    )


def _sequence_kind(config: Config, labels: int) -> tuple[str, int, dict[str, Any]]:
    problem = config.get("problem_type") or ("regression" if labels == 1 else "single_label_classification")
    if problem == "regression":
        return "regression", 1, {"num_targets": labels}
    kinds = {
        "single_label_classification": "multiclass_classification",
        "multi_label_classification": "multilabel_classification",
    }
    if problem not in kinds:
        raise ValueError(
            f"[convert] expected problem_type 'regression' or one of {', '.join(kinds)} but got {problem!r}. "
            "Correct config.json."
        )
    return kinds[problem], labels, {}


def head_weights(config: Config, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return the head's arrays, under the head's names, from a checkpoint's tensors.

    Args:
        config: Parsed `config.json` of the checkpoint, which names a known task.
        weights: All tensors of the checkpoint under their Hugging Face names.

    Raises:
        ValueError: If the checkpoint names no known task.
    """
    row = _known_row(config)
    arrays: dict[str, mx.array] = {}
    tied = task_of(config) == "masked_lm" and config.get("tie_word_embeddings", True)
    for path, prefix in row.names.items():
        for suffix in ("weight", "bias", *_OLD_SUFFIXES):
            if f"{prefix}.{suffix}" in weights and not (tied and path == "output"):
                arrays[f"{path}.{_OLD_SUFFIXES.get(suffix, suffix)}"] = weights[f"{prefix}.{suffix}"]
    if row.bias:
        own = weights.get(row.bias, weights.get(f"{row.names['output']}.bias"))
        if own is not None and tied:
            arrays["decoder_bias"] = own
        elif own is not None:
            arrays.setdefault("output.bias", own)
    if task_of(config) == "sequence_classification" and _sequence_kind(config, number_of_labels(config))[2]:
        labels = number_of_labels(config)
        arrays |= {"target_mean": mx.zeros((labels,)), "target_std": mx.ones((labels,))}
    elif "multi_label" in (config.get("problem_type") or ""):
        arrays["thresholds"] = mx.full((number_of_labels(config),), 0.5)
    return arrays


def _known_row(config: Config) -> HeadMap:
    row = _row(config)
    if row is None:
        raise ValueError(
            f"[convert] expected a task among {', '.join(sorted(set(_TASK_OF_ARCHITECTURE)))} of "
            f"{', '.join(TASK_HEADS)} but got {config.get('architectures')} of {config.get('model_type')!r}. "
            "Load the checkpoint as an encoder and attach a new head."
        )
    return row


def checkpoint_config(config: Config, head_config: HeadConfig) -> dict[str, Any]:
    """Return a copy of an encoder's `config.json` that makes transformers build the equal of a head.

    Raises:
        ValueError: If the architecture has no such head, or only one with other arithmetic.
    """
    model_type, head_type = config.get("model_type", ""), str(head_config.head_type)
    task = _TASK_OF_HEAD.get(head_type)
    row = TASK_HEADS.get(model_type, {}).get(task or "")
    if row is None:
        raise ValueError(
            f"[convert] expected a head of {model_type!r} in transformers but got {head_type!r}, which has no equal "
            "there. Save the model with save_pretrained instead."
        )
    suffix = next(suffix for suffix, name in _TASK_OF_ARCHITECTURE.items() if name == task)
    result = {**config, "architectures": [_CLASS_PREFIX[model_type] + suffix]}
    if task == "sequence_classification":
        result["problem_type"] = {
            "regression": "regression",
            "multilabel_classification": "multi_label_classification",
        }.get(head_type, "single_label_classification")
        if head_type == "text_classification" and head_config.output_size == 1:
            result["problem_type"] = "regression"
    if task in ("sequence_classification", "token_classification", "question_answering"):
        labels = head_config.extra.get("num_targets", head_config.output_size)
        if len(result.get("id2label") or {}) != labels:
            result["id2label"] = {str(index): f"LABEL_{index}" for index in range(labels)}
            result["label2id"] = {name: int(index) for index, name in result["id2label"].items()}
        result["num_labels"] = labels
    if task == "masked_lm":
        result["tie_word_embeddings"] = bool(head_config.extra.get("tie_embeddings", False))
    if model_type == "modernbert" and task in ("sequence_classification", "multiple_choice"):
        result["classifier_pooling"] = str(head_config.pooling_type)
    mine, theirs = _arithmetic(head_config, task), _arithmetic(_head_config(result, task, row), task)
    if different := sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]):
        wanted = ", ".join(f"{name}={theirs[name]!r}" for name in different)
        raise ValueError(
            f"[convert] expected {wanted} for {result['architectures'][0]} but got "
            f"{', '.join(f'{name}={mine[name]!r}' for name in different)}. "
            "Save the model with save_pretrained, or build the head with these options."
        )
    return result


def _arithmetic(config: HeadConfig, task: str) -> dict[str, Any]:
    """Return the options that change what a head computes in evaluation, with those that have no effect left out."""
    fields = config.to_dict()
    names = ["input_size", "hidden_sizes", "use_input_norm", "use_task_attention", "use_ffn", "output_bias"]
    if config.hidden_sizes:
        names += ["activation", "hidden_bias", "use_residual_connections", "use_weight_norm", "activation_options"]
    result = {name: fields[name] for name in names}
    norm = config.block_normalization if config.hidden_sizes else None
    result["norm"] = norm and (norm, config.normalization_options.get("eps", 1e-6), config.norm_after_activation)
    if task in ("sequence_classification", "multiple_choice"):
        result["pooling"] = (config.use_pooling, str(config.pooling_type), config.pooling_options)
    for name, default in _ARITHMETIC_EXTRAS.items():
        result[name] = config.extra.get(name, default)
    result["use_uncertainty"] = config.use_uncertainty
    return result


_ARITHMETIC_EXTRAS = {"use_crf": False, "rnn_layers": 0, "objective": "mlm", "tie_embeddings": False}


def checkpoint_weights(config: Config, head: BaseKaggleHead) -> dict[str, mx.array]:
    """Return a head's arrays under their Hugging Face names: the inverse of `head_weights`.

    Args:
        config: The `config.json` that `checkpoint_config` gave, or that the head was read from.
        head: The head. The target normalisation and output scaling of a regression are folded into its last layer.

    Raises:
        ValueError: If the checkpoint names no known task, or an array of the head has no place in it.
    """
    row = _known_row(config)
    arrays = head.state_arrays()
    arrays.pop("thresholds", None)
    if "target_std" in arrays:
        _fold_target_units(arrays)
    result: dict[str, mx.array] = {}
    for name, array in arrays.items():
        path, _, suffix = name.rpartition(".")
        if name == "decoder_bias" or (row.bias and name == "output.bias"):
            result[row.bias] = array
            if name == "output.bias":
                result[f"{row.names['output']}.bias"] = array
        elif path in row.names:
            result[f"{row.names[path]}.{suffix}"] = array
        else:
            raise ValueError(
                f"[convert] expected arrays of {', '.join(row.names)} but got {name}. "
                "Use checkpoint_config to see whether transformers has an equal head."
            )
    return result


def _fold_target_units(arrays: dict[str, mx.array]) -> None:
    scale, shift = arrays.pop("target_std"), arrays.pop("target_mean")
    shift = shift + scale * arrays.pop("output_shift", mx.zeros_like(shift))
    scale = scale * arrays.pop("output_scale", mx.ones_like(scale))
    weight = arrays["output.weight"]
    arrays["output.weight"] = (weight * mx.expand_dims(scale, 1)).astype(weight.dtype)
    arrays["output.bias"] = (arrays["output.bias"] * scale + shift).astype(weight.dtype)
