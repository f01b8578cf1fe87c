"""Hugging Face task heads <-> `heads/`, in both directions: the rows of `convert.head_table`, applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import mlx.core as mx

from convert.head_table import (
    BLOCK,
    CLASS_PREFIX,
    TASK_HEADS,
    UNUSED_HEADS,
    Config,
    HeadMap,
    family_of,
    find_row,
    is_in_transformers,
)
from heads import BaseKaggleHead, HeadConfig
from mlx_bert.checkpoint import TensorEntry, entries_of
from mlx_bert.encoders import find_encoder

_TASK_OF_ARCHITECTURE = {
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForMultipleChoice": "multiple_choice",
}
_SUFFIXES = {task: suffix for suffix, task in reversed(_TASK_OF_ARCHITECTURE.items())}
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
_OLD_SUFFIXES = {"gamma": "weight", "beta": "bias"}


def task_of(config: Config) -> str | None:
    """Return the task that `architectures[0]` names, or None for a bare encoder or an unknown one."""
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list | tuple) and names else ""
    return next((task for suffix, task in _TASK_OF_ARCHITECTURE.items() if first.endswith(suffix)), None)


def _row(config: Config) -> HeadMap | None:
    return find_row(config, task_of(config))


def number_of_labels(config: Config) -> int:
    """Return the number of labels of a checkpoint: `num_labels`, else the size of `id2label`, else 2."""
    return int(config.get("num_labels") or len(config.get("id2label") or {}) or 2)


def head_tensors(config: Config, tensor_names: Iterable[str]) -> set[str]:
    """Return which tensors of a checkpoint belong to its task head, also those that only repeat another tensor."""
    row = _row(config)
    if row is None:
        return set()
    prefixes = (*row.names.values(), *row.older.values(), *UNUSED_HEADS)
    return {name for name in tensor_names if name == row.bias or name.rpartition(".")[0] in prefixes}


def todays_head_names(config: Config, tensor_names: Iterable[str]) -> dict[str, str]:
    """Return the name in transformers of each head tensor that is spelled as in the architecture's own code."""
    row = _row(config)
    todays = {older: name for name, older in row.older.items()} if row else {}
    split = {name: name.rpartition(".") for name in tensor_names}
    return {name: f"{todays[path]}.{suffix}" for name, (path, _, suffix) in split.items() if path in todays}


def zero_biases(config: Config, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the biases that transformers' class has and the architecture's own code had not, if any: zeros."""
    row = _row(config)
    dense = entries.get(f"{row.names[BLOCK]}.weight") if row and row.older_has_no_biases else None
    if dense is None:
        return {}
    sizes = {f"{row.names[BLOCK]}.bias": dense.shape[0], row.bias: _vocabulary(config)}
    zeros = [mx.zeros((size,), dense.dtype) for size in sizes.values()]
    new = entries_of({name: array for name, array in zip(sizes, zeros, strict=True) if name not in entries})
    return {entry.name: entry for entry in new}


def _vocabulary(config: Config) -> int:
    return find_encoder(config).Config.from_dict(config).vocab_size


def todays_class(config: Config) -> dict[str, list[str]]:
    """Return `architectures` with the name of transformers' class, or nothing where it has none."""
    task = task_of(config)
    return (
        {} if find_row(config, task) is None else {"architectures": [CLASS_PREFIX[family_of(config)] + _SUFFIXES[task]]}
    )


def head_from_checkpoint(config: Config, tensor_names: Iterable[str]) -> HeadConfig | None:
    """Return the head that a Hugging Face checkpoint carries.

    Args:
        config: Parsed `config.json`.
        tensor_names: Names of the tensors in the checkpoint.

    Returns:
        The config of the equal head, or None if the checkpoint is a bare encoder: it names no task that is known here,
        or holds no tensor of the head's own.
    """
    row, task, tensor_names = _row(config), task_of(config), set(tensor_names)
    present = {name.rpartition(".")[0] for name in tensor_names}
    # A pooler alone does not make a classifier, and a tied decoder has no weight of its own.
    decisive = row.names.get(BLOCK, row.names["output"]) if row else None
    if row is not None and task == "masked_lm" and BLOCK not in row.names and _is_tied(config, row, tensor_names):
        decisive = None  # the head is the word embeddings and nothing else
    if row is None or (decisive is not None and decisive not in present):
        return None
    return _head_config(config, task, row, tensor_names)


def new_task(config: Config, task: str, num_labels: int | None = None) -> tuple[dict[str, Any], HeadConfig]:
    """Return the `config.json` and the head of transformers' class for a task over an encoder.

    Args:
        config: An encoder's `config.json`.
        task: "sequence_classification", "token_classification", "masked_lm", ...
        num_labels: Number of labels; one makes a class that scores. None for tasks that have none.

    Raises:
        ValueError: If transformers has no such class.
    """
    row = find_row(config, task)
    if row is None or not is_in_transformers(config):
        raise ValueError(
            f"[convert] expected an architecture with a head for {task} in transformers but got "
            f"{family_of(config)!r}. Attach a head with create_bert_with_head instead."
        )
    kept = {key: value for key, value in config.items() if key not in ("problem_type", "id2label", "label2id")}
    result = {**kept, "architectures": [CLASS_PREFIX[family_of(config)] + _SUFFIXES[task]]}
    if num_labels is not None:
        names = {str(index): f"LABEL_{index}" for index in range(num_labels)}
        same = len(config.get("id2label") or {}) == num_labels
        result["id2label"] = dict(config["id2label"]) if same else names
        result["label2id"] = {name: int(index) for index, name in result["id2label"].items()}
        result["num_labels"] = num_labels
    return result, _head_config(result, task, row)


def head_paths(config: Config, task: str) -> Mapping[str, str]:
    """Return module path in the head -> module path in a checkpoint of the task."""
    row = find_row(config, task)
    return {} if row is None else row.names


def _head_config(config: Config, task: str, row: HeadMap, tensor_names: Iterable[str] | None = None) -> HeadConfig:
    encoder = find_encoder(config).Config.from_dict(config)
    config = {**encoder.modernise(config), **asdict(encoder)}
    labels = number_of_labels(config)
    kinds: dict[str, tuple[str, int, dict[str, Any]]] = {
        "masked_lm": (
            "text_generation",
            config.get("vocab_size", 1),
            {"objective": "mlm", "tie_embeddings": _is_tied(config, row, tensor_names)},
        ),
        "token_classification": ("token_classification", labels, {}),
        "question_answering": ("question_answering", 2, {}),
        "multiple_choice": ("multiple_choice", 1, {}),
    }
    head_type, size, extra = kinds.get(task) or _sequence_kind(config, labels)
    return HeadConfig(
        head_type=head_type, input_size=config["hidden_size"], output_size=size, extra=extra, **row.options(config)
    )


def _is_tied(config: Config, row: HeadMap, tensor_names: Iterable[str] | None = None) -> bool:
    """Whether the decoder is the word embeddings: what the config says, else what the file lacks."""
    default = row.tied_by_default or (tensor_names is not None and f"{row.names['output']}.weight" not in tensor_names)
    return row.always_tied or bool(config.get("tie_word_embeddings", default))


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
    weights = {**weights, **{new: weights[old] for old, new in todays_head_names(config, weights).items()}}
    arrays: dict[str, mx.array] = {}
    tied = task_of(config) == "masked_lm" and _is_tied(config, row, weights)
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
    if row.older_has_no_biases:
        dense = arrays[f"{BLOCK}.weight"]
        arrays.setdefault(f"{BLOCK}.bias", mx.zeros(dense.shape[:1], dense.dtype))
        arrays.setdefault("decoder_bias" if tied else "output.bias", mx.zeros((_vocabulary(config),), dense.dtype))
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
    model_type, head_type = family_of(config), str(head_config.head_type)
    task = _TASK_OF_HEAD.get(head_type)
    pooled = task in ("sequence_classification", "multiple_choice")
    if model_type == "eurobert" and pooled:
        names = {"cls": "bos", "mean": "mean"}
        config = {**config, "classifier_pooling": names.get(str(head_config.pooling_type), "late")}
    row = find_row(config, task)
    if row is None or not is_in_transformers(config):
        raise ValueError(
            f"[convert] expected a head of {model_type!r} in transformers but got {head_type!r}, which has no equal "
            "there. Save the model with save_pretrained instead."
        )
    result = {**config, "architectures": [CLASS_PREFIX[model_type] + _SUFFIXES[task]]}
    if task == "sequence_classification":
        problem = {
            "regression": "regression",
            "multilabel_classification": "multi_label_classification",
        }.get(head_type, "single_label_classification")
        if head_type == "text_classification" and head_config.output_size == 1:
            problem = "regression"
        # A file with one label that names no problem trains as a regression, but pipelines take the sigmoid of it.
        scores_one_label = problem == "regression" and number_of_labels({**config, "num_labels": None}) == 1
        if config.get("problem_type") or not scores_one_label:
            result["problem_type"] = problem
    if task in ("sequence_classification", "token_classification", "question_answering"):
        labels = head_config.extra.get("num_targets", head_config.output_size)
        if len(result.get("id2label") or {}) != labels:
            result["id2label"] = {str(index): f"LABEL_{index}" for index in range(labels)}
            result["label2id"] = {name: int(index) for index, name in result["id2label"].items()}
        result["num_labels"] = labels
    if task == "masked_lm":
        result["tie_word_embeddings"] = bool(head_config.extra.get("tie_embeddings", False))
    if model_type == "modernbert" and pooled:
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
    if "output.bias" not in arrays and mx.any(shift != 0).item():
        raise ValueError(
            "[convert] expected targets without an offset, because this class has no bias, but got a mean or a shift "
            "that is not 0. Save the model with save_pretrained."
        )
    scale = scale * arrays.pop("output_scale", mx.ones_like(scale))
    weight = arrays["output.weight"]
    arrays["output.weight"] = (weight * mx.expand_dims(scale, 1)).astype(weight.dtype)
    if "output.bias" in arrays:
        arrays["output.bias"] = (arrays["output.bias"] * scale + shift).astype(weight.dtype)
