"""Factories: an encoder, or an encoder with a head, from names, configs or plain keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heads import (
    CompetitionType,
    HeadConfig,
    HeadType,
    get_default_config_for_head_type,
    get_head_registry,
    select_best_head,
)
from heads.config import resolve_head_type
from mlx_bert.core import BertCore, override
from mlx_bert.data.analysis import analyze_dataset
from mlx_bert.encoders.base import EncoderConfig
from mlx_bert.model import BertWithHead


def create_bert_core(
    model_name: str | Path | None = None,
    config: EncoderConfig | Mapping[str, Any] | None = None,
    **options: Any,
) -> BertCore:
    """Create an encoder: pretrained by name, else new from a config, else new from keywords.

    Args:
        model_name: folder or hub id of a checkpoint.
        config: an architecture's config, or a mapping of its fields; ``model_type`` is ``"bert"`` unless given.
        options: config values that replace the others (``hidden_size=768``); for a checkpoint also the arguments of
            :meth:`BertCore.from_pretrained`.

    Example:
        >>> create_bert_core(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)

    Raises:
        ValueError: an unknown config key, or values that do not fit together.
    """
    if model_name is not None:
        return BertCore.from_pretrained(model_name, **options)
    pooling = options.pop("compute_additional_pooling", True)
    if isinstance(config, EncoderConfig):
        config = config.to_dict()
    config = {"model_type": options.pop("model_type", "bert"), **(config or {})}
    return BertCore(override(config, options), pooling)


def create_bert_with_head(
    bert_config: EncoderConfig | Mapping[str, Any] | None = None,
    head_config: HeadConfig | Mapping[str, Any] | None = None,
    head_type: HeadType | str | None = None,
    bert_name: str | Path | None = None,
    freeze_bert: bool = False,
    freeze_bert_layers: int | None = None,
    num_labels: int = 2,
    id2label: Mapping[int | str, str] | Sequence[str] | None = None,
    **options: Any,
) -> BertWithHead:
    """Create an encoder with a new head.

    Args:
        bert_config: config of a new encoder, if no ``bert_name`` is given.
        head_config: the head's config; ``input_size`` may be left out. Wins over ``head_type``.
        head_type: a head with its recommended options; ``"binary_classification"`` if neither is given.
        bert_name: folder or hub id of a pretrained encoder.
        freeze_bert: train the head alone.
        freeze_bert_layers: freeze the embeddings and this many bottom layers.
        num_labels: number of classes, labels or values.
        id2label: names of the classes, by ids or in order.
        options: further options of the head (``pooling_type="mean"``).

    Raises:
        ValueError: an unknown option, or a head that does not fit the encoder.
    """
    bert = create_bert_core(bert_name, bert_config)
    if head_config is None:
        kind = HeadType.BINARY_CLASSIFICATION if head_type is None else head_type
        head_config = get_default_config_for_head_type(kind, bert.get_hidden_size(), num_labels, **options)
    elif isinstance(head_config, HeadConfig):
        head_config = head_config.replace(**options)
    else:
        head_config = {"input_size": bert.get_hidden_size(), "output_size": num_labels, **head_config, **options}
    return BertWithHead(bert, head_config, freeze_bert, freeze_bert_layers, id2label)


def create_model(
    model_type: str,
    head_type: HeadType | str | None = None,
    num_labels: int = 2,
    config: EncoderConfig | Mapping[str, Any] | None = None,
    pretrained_path: str | Path | None = None,
    head_config: HeadConfig | Mapping[str, Any] | None = None,
    freeze_bert: bool = False,
    freeze_bert_layers: int | None = None,
    **options: Any,
) -> BertCore | BertWithHead:
    """Create a model by the name of its kind.

    Args:
        model_type: ``"bert_core"``, ``"standard"`` (both an encoder), ``"modernbert"``, ``"cnn_hybrid"`` (encoders of
            that architecture), ``"mlx_embedding"`` (a converted checkpoint, quantised or not), ``"bert_with_head"`` or
            ``"classifier"`` (an encoder with a head).
        head_type, num_labels, head_config, freeze_bert, freeze_bert_layers: of a model with a head.
        config: config of a new encoder; a part of the keys is enough.
        pretrained_path: folder or hub id of a pretrained encoder.
        options: config values of an encoder, or options of a head.

    Raises:
        ValueError: an unknown kind, or options that it does not have.
    """
    config = config.to_dict() if isinstance(config, EncoderConfig) else config
    if model_type in ("bert_with_head", "classifier"):
        return create_bert_with_head(
            bert_config=config,
            head_config=head_config,
            head_type=head_type,
            bert_name=pretrained_path,
            freeze_bert=freeze_bert,
            freeze_bert_layers=freeze_bert_layers,
            num_labels=num_labels,
            **options,
        )
    kinds = {"bert_core": "bert", "standard": "bert", "modernbert": "modernbert", "cnn_hybrid": "cnn_hybrid"}
    if model_type not in (*kinds, "mlx_embedding"):
        known = ", ".join([*kinds, "mlx_embedding", "bert_with_head", "classifier"])
        raise ValueError(f"[create_model] expected model_type to be one of {known} but got {model_type!r}.")
    if head_type is not None or head_config is not None or freeze_bert or freeze_bert_layers is not None:
        raise ValueError(
            f"[create_model] expected no head for model_type {model_type!r} but got head or freezing options. "
            "Use model_type 'bert_with_head'."
        )
    if model_type == "mlx_embedding" and pretrained_path is None:
        raise ValueError("[create_model] expected pretrained_path with model_type 'mlx_embedding' but got None.")
    if model_type == "cnn_hybrid":  # also over a plain BERT's weights, which get a new CNN
        options = {"model_type": "cnn_hybrid", **options}
    if pretrained_path is not None:
        return create_bert_core(pretrained_path, **options)
    return create_bert_core(config={"model_type": kinds[model_type], **(config or {})}, **options)


def create_bert_for_task(
    task: str | HeadType | CompetitionType,
    pretrained_name: str | Path | None = None,
    num_labels: int = 2,
    freeze_bert: bool = False,
    **options: Any,
) -> BertWithHead:
    """Create an encoder with the head of a task.

    Args:
        task: the name of a head, or of a kind of competition.
        pretrained_name: folder or hub id of the encoder; None for a new one.
        num_labels: number of classes, labels or values.
        freeze_bert: train the head alone.
        options: as in :func:`create_bert_with_head`.

    Raises:
        ValueError: an unknown task.
    """
    name = str(getattr(task, "value", task)).strip().lower()
    if name in {kind.value for kind in HeadType} or name in get_head_registry().list_heads():
        return create_bert_with_head(
            head_type=name, bert_name=pretrained_name, num_labels=num_labels, freeze_bert=freeze_bert, **options
        )
    if name in {kind.value for kind in CompetitionType}:
        return create_bert_for_competition(
            name, bert_name=pretrained_name, num_labels=num_labels, freeze_bert=freeze_bert, **options
        )
    known = sorted({kind.value for kind in (*HeadType, *CompetitionType)})
    raise ValueError(f"[create_bert_for_task] expected one of {', '.join(known)} but got {task!r}.")


def create_bert_for_competition(
    competition_type: CompetitionType | str,
    bert_config: EncoderConfig | Mapping[str, Any] | None = None,
    bert_name: str | Path | None = None,
    num_labels: int = 2,
    **options: Any,
) -> BertWithHead:
    """Create an encoder with the best registered head for a kind of competition, in its recommended form.

    Raises:
        ValueError: an unknown competition, or one without a head.
    """
    name = select_best_head(competition_type)
    if str(competition_type) == CompetitionType.TIME_SERIES:
        name = resolve_head_type(HeadType.TIME_SERIES, num_labels, options.pop("task", None))
    return create_bert_with_head(
        bert_config=bert_config, bert_name=bert_name, head_type=name, num_labels=num_labels, **options
    )


def create_bert_from_dataset(
    dataset_path: str | Path,
    pretrained_name: str | Path | None = None,
    auto_analyze: bool = True,
    target_column: str | None = None,
    **options: Any,
) -> BertWithHead:
    """Create the model that suits a data set: a path is enough.

    Target, task, head, pooling, dropout, weights of rare classes and frozen layers follow from the data, and are
    printed; the finding is kept as ``model.analysis``, whose ``recommended_training_settings`` are those of
    ``TrainingArgs`` to go on with. ``mlx-bert train --task auto`` does all of it.

    Args:
        dataset_path: a ``.csv``, ``.tsv`` or ``.jsonl`` file.
        pretrained_name: folder or hub id of the encoder; None for a new one.
        auto_analyze: False gives a binary classifier without looking at the data.
        target_column: the target; None to find it.
        options: as in :func:`create_bert_with_head`; they win over what the data suggests.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a data set without a usable target.
    """
    if not auto_analyze:
        return create_bert_with_head(bert_name=pretrained_name, **options)
    analysis = analyze_dataset(dataset_path, target_column)
    print(analysis)
    if analysis.classes:
        options.setdefault("id2label", dict(enumerate(analysis.classes)))
    settings = analysis.recommended_head_options()
    if {"loss", "pos_weight", "class_weights"} & set(options):  # another answer to rare classes
        settings = {name: value for name, value in settings.items() if name not in ("pos_weight", "class_weights")}
    settings |= options
    freezes = "freeze_bert" in settings or "freeze_bert_layers" in settings
    model = create_bert_for_competition(
        analysis.competition_type, bert_name=pretrained_name, num_labels=analysis.num_classes, **settings
    )
    layers = analysis.recommended_frozen_layers(model.bert.get_num_layers())
    if pretrained_name is not None and layers and not freezes:
        model.freeze_bert(layers)
    model.analysis = analysis
    return model
