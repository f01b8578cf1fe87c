"""Training of cross-encoders: pairs scored one by one, or lists of documents ranked for a query, and distillation.

Dimension key: P pairs of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads import losses, metrics
from heads.classification_losses import binary_cross_entropy, cross_entropy
from heads.ranking_losses import count_of_lists, lambda_pairs
from heads.threshold_metrics import threshold_metrics
from mlx_bert.data.collate import Arrays
from mlx_bert.data.groups import Group, GroupCollator, as_groups, tokenize_groups
from mlx_bert.data.readers import Example
from mlx_bert.inference.cross_encoder import CrossEncoder, find_activation
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.feed import default_collator
from mlx_bert.training.lora import merge_lora
from mlx_bert.training.objective import HeadObjective
from mlx_bert.training.outcome import TrainResult
from mlx_bert.training.step import compiles
from mlx_bert.training.trainer import Trainer

RANKING_LOSSES: dict[str, Callable[..., mx.array]] = {
    "lambda": losses.lambda_loss,
    "listnet": losses.listnet_loss,
    "listmle": losses.listmle_loss,
    "ranknet": losses.ranknet_loss,
    "margin_mse": losses.score_margin_mse_loss,
}
LOSSES = ("bce", "ce", "mse", *RANKING_LOSSES)
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    "bce": ("pos_weight",),
    "ce": ("class_weights", "label_smoothing"),
    "lambda": ("weighting", "k", "mu", "sigma"),
    "listmle": ("position_aware",),
}


class CrossEncoderObjective(HeadObjective):
    """Loss and metrics of a cross-encoder, from the logits of a batch of pairs.

    Args:
        loss: ``"bce"`` (labels from 0 to 1), ``"ce"`` (several classes), ``"mse"`` (a teacher's scores);
            ``"lambda"``, ``"listnet"``, ``"listmle"``, ``"ranknet"`` (relevance within a query's documents);
            ``"margin_mse"`` (a teacher's scores of a query's documents, compared with that of the first).
        activation_fn: what logits go through before the loss, a function or a name of torch; None for nothing.
            ``"Sigmoid"`` suits a teacher whose scores lie between 0 and 1.
        options: the loss's own: ``pos_weight``; ``class_weights``, ``label_smoothing``; ``weighting``, ``k``, ``mu``,
            ``sigma``; ``position_aware``. See ``heads.losses``.

    Raises:
        ValueError: an unknown loss or option.
    """

    def __init__(self, loss: str, activation_fn: Any = None, **options: Any) -> None:
        if loss not in LOSSES:
            raise ValueError(f"[CrossEncoder] expected loss to be one of {', '.join(LOSSES)} but got {loss!r}.")
        known = LOSS_OPTIONS.get(loss, ())
        if unknown := sorted(set(options) - set(known)):
            has = ", ".join(known) or "none"
            raise ValueError(f"[CrossEncoder] loss {loss!r} has no options {', '.join(unknown)}. It has {has}.")
        self.name = loss
        self.activation = find_activation(activation_fn)
        self.options = options
        if options.get("class_weights") is not None:
            self.options = {**options, "class_weights": mx.array(options["class_weights"], mx.float32)}

    def forward(self, model: Any, batch: Arrays) -> dict[str, Any]:
        """``scores`` ``(P, C)``: the logits, behind the activation."""
        outputs = super().forward(model, batch)
        logits = outputs["logits"].astype(mx.float32)
        return {"scores": logits if self.activation is None else self.activation(logits)}

    def loss(self, model: Any, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The loss, and the pairs, lists or pairs of documents that it is a mean over."""
        loss, count = self._loss(outputs, batch)
        # The loss divides by an equal count. mx.compile merges equal nodes, but cannot when one of them is an output.
        return loss, count + 0.0

    def _loss(self, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        labels, scores = batch["labels"], outputs["scores"]
        target, mask = labels["relevance"], labels["mask"]
        count = mx.sum(mask.astype(mx.float32))
        if self.name == "ce":
            weights = self.options.get("class_weights")
            if weights is not None:
                count = mx.sum(mx.where(mask, weights[mx.where(mask, target, 0)], 0.0))
            return cross_entropy(scores, target, weights, self.options.get("label_smoothing", 0.0)), count
        scores = scores[:, 0]
        if self.name == "bce":
            return binary_cross_entropy(scores, target, self.options.get("pos_weight")), count
        if self.name == "mse":
            return losses.pointwise_ranking_loss(scores, target, mask), count
        lists = (scores, target, mask, labels["group_ids"])
        if self.name == "margin_mse":
            count = count - count_of_lists(*lists)
        elif self.name in ("lambda", "ranknet"):
            by = {name: self.options[name] for name in ("weighting", "k") if name in self.options}
            count = mx.sum(lambda_pairs(*lists, **by).astype(mx.float32))
        else:
            count = count_of_lists(*lists)
        return RANKING_LOSSES[self.name](*lists, **self.options), count

    def metrics(self, model: Any, outputs: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, float]:
        """What :func:`pair_metrics` gives for the real pairs."""
        real = np.array(labels["mask"])
        scores, target, groups = (
            np.array(x)[real] for x in (outputs["scores"], labels["relevance"], labels["group_ids"])
        )
        return pair_metrics(scores, target, groups)


def metrics_kind(labels: Sequence[Any], groups: Sequence[Any], num_labels: int = 1) -> str:
    """How scores of pairs are measured: ``"classes"``, ``"ranking"``, ``"binary"`` or ``"correlation"``."""
    values = np.asarray(labels)
    if num_labels > 1:
        return "classes"
    is_graded = bool((values == np.round(values)).all() and (values >= 0).all())
    if is_graded and len(np.unique(np.asarray(groups))) < len(values):
        return "ranking"
    return "binary" if is_graded and values.max() <= 1 else "correlation"


MAIN_METRIC = {
    "classes": "f1_macro",
    "ranking": "ndcg@10",
    "binary": "average_precision",
    "correlation": "spearman",
}
"""Which metric selects the best model, by the kind of labels."""


def pair_metrics(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Metrics of scores, by what the labels are.

    Args:
        scores: ``(P, C)``.
        labels: ``(P,)``: classes; or whole numbers of several documents of a query (map, mrr@10, ndcg@10); or 0 and 1
            (best accuracy and F1, average precision); or other numbers (Spearman and Pearson correlation).
        groups: ``(P,)``, the query of each pair.
    """
    kind = metrics_kind(labels, groups, scores.shape[1])
    if kind == "classes":
        return metrics.multiclass_metrics(scores, labels)
    if kind == "ranking":
        found = metrics.ranking_metrics(scores[:, 0], labels, None, groups, cutoffs=(10,), mrr_cutoffs=(10,))
        return {name: found[name] for name in ("map", "mrr@10", "ndcg@10")}
    measure = threshold_metrics if kind == "binary" else metrics.similarity_metrics
    return measure(scores[:, 0], labels)


class CrossEncoderTrainer(Trainer):
    """Trains a cross-encoder, which has the best weights afterwards; ``best_model`` loads in sentence-transformers.

    Rows are pairs (``text``, ``text_pair``, ``label``) or groups (``query``, ``documents``, ``labels``; or ``query``,
    ``positive``, ``negative``, each a text or a list). ``args.batch_size`` counts rows. The losses of single pairs take
    groups too.

    Args:
        model: from :meth:`CrossEncoder.from_pretrained`, with ``num_labels`` for an encoder without a classifier.
        args: the settings. Without ``metric`` the best model is that of the best ``ndcg@10`` (groups),
            ``average_precision`` (0 and 1), ``spearman`` (other numbers) or ``f1_macro`` (classes).
        train_rows: what to learn from.
        eval_rows: what to measure on; None for no evaluation.
        loss: see :class:`CrossEncoderObjective`; None for ``"bce"`` with one class and ``"ce"`` with several.
        activation_fn: as there.
        max_query_length: truncate queries to this many tokens, so that they leave room for the document; None for the
            model's own.
        callbacks: called in order.
        options: of the loss.

    Raises:
        ValueError: a loss that doesn't fit the model, or labels that don't fit the loss.
    """

    def __init__(
        self,
        model: CrossEncoder,
        args: TrainingArgs,
        train_rows: Sequence[Example],
        eval_rows: Sequence[Example] | None = None,
        loss: str | None = None,
        activation_fn: Any = None,
        max_query_length: int | None = None,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> None:
        loss = loss or ("bce" if model.num_labels == 1 else "ce")
        objective = CrossEncoderObjective(loss, activation_fn, **options)
        if (loss == "ce") != (model.num_labels > 1):
            wanted = "several classes" if loss == "ce" else "one class"
            raise ValueError(
                f"[CrossEncoder] expected a model with {wanted} for loss {loss!r} but got {model.num_labels}. "
                "Choose another loss, or load the model with another num_labels."
            )
        bounds = [bound for bound in (args.max_length, model.max_length) if bound]
        lengths = (min(bounds, default=None), max_query_length or model.max_query_length)

        def tokenized(rows: Sequence[Example], name: str) -> list[Example]:
            groups = [check_labels(group, loss, model, name) for group in as_groups(rows, name)]
            return tokenize_groups(groups, model.tokenizer, *lengths)

        self._tokenized = tokenized
        train = tokenized(train_rows, "train_rows")
        held_out = None if eval_rows is None else tokenized(eval_rows, "eval_rows")
        if args.metric is None and held_out is not None:
            labels = [label for example in held_out for label in example["labels"]]
            owners = [example["group"] for example in held_out for _ in example["labels"]]
            args = replace(args, metric=MAIN_METRIC[metrics_kind(labels, owners, model.num_labels)])
        super().__init__(
            model.model,
            args,
            train,
            held_out,
            tokenizer=model.tokenizer,
            collate=GroupCollator(default_collator(model.model, model.tokenizer, exact=not compiles(args))),
            objective=objective,
            callbacks=callbacks,
        )

    def train(self, resume: bool | str | Path = False) -> TrainResult:
        """:meth:`Trainer.train`; adapters (``args.lora``) are merged afterwards, so that the model is a plain one."""
        result = super().train(resume)
        merge_lora(self.model)
        return result

    def _prepared(self, examples: Sequence[Example]) -> list[Example]:
        return self._tokenized(examples, "examples")


def check_labels(group: Group, loss: str, model: CrossEncoder, where: str) -> Group:
    """A group with labels as the loss takes them; names of classes become their numbers.

    Raises:
        ValueError: labels that are no numbers or classes, or lie outside what the loss can take; a lone document.
    """
    name = f"line {group.line}" if group.line else repr(group.query[:40])
    labels = group.labels
    if loss == "ce":
        numbers = {label: number for number, label in (model.model.id2label or {}).items()}
        labels = [numbers.get(label, label) for label in labels]
        known = range(model.num_labels)
        if wrong := [label for label in labels if isinstance(label, str) or label not in known]:
            shown = ", ".join(numbers) or f"0 to {model.num_labels - 1}"
            raise ValueError(f"[CrossEncoder] unknown label {wrong[0]!r} in {name} of {where}; known: {shown}.")
        return group._replace(labels=[int(label) for label in labels])
    try:
        labels = [float(label) for label in labels]
    except (TypeError, ValueError):
        labels = [float("nan")]
    if not np.isfinite(labels).all():
        raise ValueError(
            f"[CrossEncoder] expected numbers as labels with loss {loss!r} but got {group.labels} in {name} of {where}."
        )
    if loss == "bce" and not 0 <= min(labels) <= max(labels) <= 1:
        raise ValueError(
            f"[CrossEncoder] expected labels from 0 to 1 with loss 'bce' but got {group.labels} in {name} of {where}. "
            "Scale them, or use loss 'mse'."
        )
    if loss in RANKING_LOSSES and len(group.documents) < 2 and where == "train_rows":
        raise ValueError(
            f"[CrossEncoder] expected at least 2 documents for each query with loss {loss!r} but got 1 in {name} of "
            f"{where}. Give groups, or use loss 'bce'."
        )
    return group._replace(labels=labels)
