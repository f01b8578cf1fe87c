"""One case per head and variant: its options, inputs that fit, and labels. Shared by the contract tests."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from heads import BaseKaggleHead, HeadConfig, create_head

D, L, B = 16, 5, 6


def classes(count: int) -> Callable[..., mx.array]:
    return lambda rng, rows: mx.array((np.arange(rows) % count).astype(np.int32))


def padding(shape: tuple[int, ...]) -> np.ndarray:
    """A mask of this shape with no, right and left padding in turn."""
    mask = np.ones(shape, np.int32)
    mask[1::3, ..., 3:] = 0
    mask[2::3, ..., :2] = 0
    return mask


def values(*shape: int) -> Callable[..., mx.array]:
    return lambda rng, rows: mx.array(rng.normal(size=(rows, *shape)).astype(np.float32))


def bits(*shape: int) -> Callable[..., mx.array]:
    return lambda rng, rows: mx.array(rng.integers(0, 2, (rows, *shape)).astype(np.float32))


def tokens(count: int) -> Callable[..., mx.array]:
    def draw(rng, rows: int) -> mx.array:
        labels = rng.integers(0, count, (rows, L)).astype(np.int32)
        return mx.array(np.where(padding((rows, L)) == 1, labels, -100))

    return draw


def spans(rng, rows: int) -> mx.array:
    start = rng.integers(0, 2, rows) + np.where(np.arange(rows) % 3 == 2, 2, 0)
    return mx.array(np.stack([start, start + rng.integers(0, 2, rows)], axis=1).astype(np.int32))


def relevance(*shape: int) -> Callable[..., mx.array]:
    return lambda rng, rows: mx.array(rng.permuted(np.tile(np.arange(3.0), (rows, 1)), axis=1).astype(np.float32))


def nothing(rng, rows: int) -> None:
    return None


@dataclass(frozen=True)
class Case:
    """A head with fitting data. `inner` are the axes between batch and tokens: choices, texts or items."""

    head_type: str
    labels: Callable[..., Any]
    output_size: int = 3
    extra: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    inner: tuple[int, ...] = ()
    dead: tuple[str, ...] = ()

    def config(self, **changes: Any) -> HeadConfig:
        if self.head_type == "multi_task_nlp":  # its tasks' heads have the options
            shared = {**self.extra["shared_options"], **changes}
            return HeadConfig(self.head_type, D, 2, extra={**self.extra, "shared_options": shared})
        return HeadConfig(
            **{"head_type": self.head_type, "input_size": D, "output_size": self.output_size, "extra": self.extra}
            | {"dropout_prob": 0.0}
            | self.options
            | changes
        )

    def inputs(self, rows: int = B, seed: int = 0) -> tuple[mx.array, mx.array]:
        """Hidden states and a mask."""
        rng = np.random.default_rng(seed)
        shape = (rows, *self.inner, L)
        return mx.array(rng.normal(size=(*shape, D)).astype(np.float32)), mx.array(padding(shape))

    def targets(self, rows: int = B, seed: int = 1) -> Any:
        return self.labels(np.random.default_rng(seed), rows)

    @property
    def call_options(self) -> dict[str, Any]:
        if self.extra.get("tie_embeddings"):
            return {"embeddings": mx.array(np.random.default_rng(5).normal(size=(self.output_size, D)), mx.float32)}
        return {}


TREE = {"animal": ["dog", "cat"], "plant": ["tree"], "dog": ["poodle", "boxer"]}
TASKS = {
    "topic": {"type": "classification", "num_classes": 3, "hidden_dim": 8},
    "tags": {"type": "multilabel", "num_classes": 2, "hidden_dim": 8},
    "score": {"type": "regression", "hidden_dim": 8},
}
NLP_TASKS = {
    "mood": {"name": "mood", "task_type": "sentiment_analysis", "num_classes": 3},
    "ner": {"name": "ner", "task_type": "named_entity_recognition", "num_classes": 4, "loss_weight": 0.5},
}


def task_labels(rng, rows: int) -> dict[str, mx.array]:
    return {"topic": classes(3)(rng, rows), "tags": bits(2)(rng, rows), "score": values()(rng, rows)}


def nlp_labels(rng, rows: int) -> dict[str, mx.array]:
    return {"mood": classes(3)(rng, rows), "ner": tokens(4)(rng, rows)}


# The bias of a score that only enters a softmax over positions, choices or items has no gradient.
SHIFT = ("output.bias",)
RANK_SHIFT = ("output.bias", "scorer.1.norm.bias")
SMALL_RNN = {"num_lstm_layers": 2, "hidden_dim": 8}
RANK = {"scorer_sizes": [8, 6]}

CASES: dict[str, Case] = {
    "binary": Case("binary_classification", classes(2), 2),
    "binary_tricks": Case("binary_classification", classes(2), 2, options={"use_competition_tricks": True}),
    "binary_weighted": Case("binary_classification", classes(2), 2, options={"class_weights": [1.0, 3.0]}),
    "multiclass": Case("multiclass_classification", classes(3)),
    "multiclass_tricks": Case(
        "multiclass_classification", classes(3), options={"use_competition_tricks": True, "class_weights": [1, 2, 3]}
    ),
    "multilabel": Case("multilabel_classification", bits(3), extra={"pos_weight": [1.0, 2.0, 3.0]}),
    "multilabel_focal": Case("multilabel_classification", bits(3), extra={"loss": "focal"}),
    "text": Case("text_classification", classes(3), options={"label_smoothing": 0.1}),
    "text_regression": Case("text_classification", values(), 1),
    "regression": Case("regression", values()),
    "regression_uncertain": Case("regression", values(), options={"use_uncertainty": True}),
    "regression_scaled": Case(
        "regression", values(2), extra={"loss_type": "huber", "num_targets": 2, "use_output_scaling": True}
    ),
    "ordinal_coral": Case("ordinal_regression", classes(4), 4),
    "ordinal_cumulative": Case("ordinal_regression", classes(4), 4, extra={"ordinal_type": "cumulative_logits"}),
    "ordinal_all": Case("ordinal_regression", classes(4), 4, extra={"ordinal_type": "all_threshold"}),
    "hierarchical": Case("hierarchical", classes(7), 7, extra={"hierarchy": TREE}),
    "hierarchical_hidden": Case(
        "hierarchical", classes(7), 7, extra={"hierarchy": TREE, "hidden_dim": 8, "decoding": "greedy"}
    ),
    "ensemble": Case("ensemble", classes(3)),
    "ensemble_weighted": Case(
        "ensemble",
        classes(3),
        extra={"ensemble_method": "weighted", "num_heads": 4, "member_poolings": ["cls", "mean"]},
    ),
    "ensemble_attention": Case("ensemble", classes(3), extra={"ensemble_method": "attention"}),
    "series_class": Case("time_series_classification", classes(3), extra=SMALL_RNN),
    "series_class_plain": Case(
        "time_series_classification", classes(3), extra={**SMALL_RNN, "use_attention": False, "bidirectional": False}
    ),
    "series_value": Case("time_series_regression", values(3), extra={"forecast_horizon": 3}),
    "series_value_gru": Case(
        "time_series_regression", values(), extra={"temporal_encoder": "gru", "use_temporal_features": False}
    ),
    "series_value_transformer": Case("time_series_regression", values(), extra={"temporal_encoder": "transformer"}),
    "ranking_listnet": Case("ranking", relevance(3), extra=RANK, inner=(3,), dead=RANK_SHIFT),
    "ranking_ranknet": Case(
        "ranking", relevance(3), extra={**RANK, "ranking_loss": "ranknet"}, inner=(3,), dead=RANK_SHIFT
    ),
    "ranking_lambda": Case(
        "ranking", relevance(3), extra={**RANK, "ranking_loss": "lambdarank"}, inner=(3,), dead=RANK_SHIFT
    ),
    "ranking_hinge": Case(
        "ranking", relevance(3), extra={**RANK, "ranking_loss": "hinge", "margin": 5.0}, inner=(3,), dead=RANK_SHIFT
    ),
    "ranking_pointwise": Case("ranking", bits(), extra={**RANK, "ranking_loss": "pointwise"}),
    "contrastive_pairs": Case("contrastive", nothing, extra={"projection_dim": 10}, inner=(2,)),
    "contrastive_classes": Case("contrastive", classes(2), extra={"projection_dim": 10, "projection_hidden_dim": 6}),
    "contrastive_triplet": Case(
        "contrastive", nothing, extra={"projection_dim": 10, "loss": "triplet", "margin": 3.0}, inner=(3,)
    ),
    "contrastive_negatives": Case("contrastive", nothing, extra={"projection_dim": 10}, inner=(3,)),
    "contrastive_labelled": Case(
        "contrastive",
        bits(),
        extra={"projection_dim": 10, "loss": "pair_contrastive", "normalize_embeddings": False, "margin": 9.0},
        inner=(2,),
        dead=SHIFT,
    ),
    "contrastive_scores": Case("contrastive", values(), extra={"projection_dim": 10, "loss": "cosine_mse"}, inner=(2,)),
    "metric": Case("metric_learning", classes(2), extra={"projection_dim": 10}),
    "metric_euclidean": Case(
        "metric_learning",
        classes(2),
        extra={"projection_dim": 10, "margin": 0.5, "distance": "euclidean", "normalize_embeddings": False},
        dead=SHIFT,
    ),
    "metric_manhattan": Case(
        "metric_learning", classes(2), extra={"projection_dim": 10, "margin": 0.5, "distance": "manhattan"}
    ),
    "similarity_cosine": Case("text_similarity", values(), 8, inner=(2,)),
    "similarity_dot": Case(
        "text_similarity", bits(), 8, extra={"similarity_function": "dot", "loss": "bce"}, inner=(2,)
    ),
    "similarity_learned": Case("text_similarity", values(), 8, extra={"similarity_function": "learned"}, inner=(2,)),
    "similarity_negatives": Case("text_similarity", nothing, 8, extra={"loss": "multiple_negatives"}, inner=(2,)),
    "token": Case("token_classification", tokens(4), 4),
    "token_focal": Case("token_classification", tokens(4), 4, extra={"loss": "focal"}),
    "token_crf": Case("token_classification", tokens(4), 4, extra={"use_crf": True}),
    "token_lstm": Case(
        "token_classification", tokens(4), 4, extra={"rnn_layers": 2, "rnn_hidden": 4, "rnn_dropout": 0}
    ),
    "question": Case("question_answering", spans, 2, dead=SHIFT),
    "mlm": Case("text_generation", tokens(11), 11),
    "mlm_tied": Case("text_generation", tokens(11), 11, extra={"tie_embeddings": True}),
    "causal": Case("text_generation", tokens(11), 11, extra={"objective": "causal"}),
    "choice": Case("multiple_choice", classes(3), 1, inner=(3,), dead=SHIFT),
    "multi_task": Case("multi_task", task_labels, extra={"task_configs": TASKS, "shared_dim": 8}),
    "multi_task_uncertain": Case(
        "multi_task",
        task_labels,
        extra={"task_configs": TASKS, "shared_dim": 8, "use_uncertainty_weighting": True, "task_weights": {"score": 2}},
    ),
    "multi_task_nlp": Case(
        "multi_task_nlp",
        nlp_labels,
        extra={
            "task_configs": NLP_TASKS,
            "use_task_specific_projections": True,
            "shared_options": {"dropout_prob": 0.0, "input_dropout": 0.0},
            "use_uncertainty_weighting": True,
        },
    ),
}


def build(case: Case, seed: int = 0, scale: float = 0.3, **changes: Any) -> BaseKaggleHead:
    """The case's head with all floating parameters redrawn, so that no gradient is 0 because a weight starts at 0."""
    mx.random.seed(seed)
    head = create_head(case.config(**changes))
    rng = np.random.default_rng(seed)

    def redraw(name: str, array: mx.array) -> mx.array:
        noise = rng.normal(scale=scale, size=array.shape).astype(np.float32)
        kept = ("running_mean", "running_var", "log_variances")
        return array if name.endswith(kept) else array + mx.array(noise)

    head.update(tree_map_named(redraw, head.trainable_parameters()))
    return head


def tree_map_named(function: Callable[[str, mx.array], mx.array], tree: Any) -> Any:
    names = iter([name for name, _ in tree_flatten(tree)])
    return tree_map(lambda array: function(next(names), array), tree)


def loss_and_gradients(
    head: BaseKaggleHead, case: Case, padding_content: float | None = None
) -> tuple[mx.array, dict[str, mx.array]]:
    hidden, mask = case.inputs()
    if padding_content is not None:
        hidden = mx.where(mx.expand_dims(mask, -1) == 1, hidden, padding_content)
    targets = case.targets()

    def loss(hidden):
        return head.compute_loss(head(hidden, mask, **case.call_options), targets)

    value, gradients = nn.value_and_grad(head, loss)(hidden)
    return value, dict(tree_flatten(gradients))


def stable_seed(text: str) -> int:
    return zlib.crc32(text.encode())
