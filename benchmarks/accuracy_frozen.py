"""Recipes of the accuracy benchmark that leave the encoder as it is and train heads on its outputs.

The encoder runs once over each text. Dimension key: N texts, D hidden size, C labels, K targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.accuracy_data import PARTS, SEED, Context, Figure
from heads import HeadConfig
from heads.metrics import multilabel_metrics
from mlx_bert.core import BertCore
from mlx_bert.data.collate import Collator, tokenize_examples
from mlx_bert.data.labels import LabelMap
from mlx_bert.model import BertWithHead
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.encoder_cache import cache_encoder
from mlx_bert.training.objective import evaluate
from mlx_bert.training.step import compiles
from mlx_bert.training.trainer import Trainer

PROBE = "scikit-learn, logistic regression on the model's normalised embeddings, "
# data, field of the label, accuracy, source; the better one where C = 1 and C = 10 were tried
PROBES = (
    ("uci_sentiment", "label", 0.913, PROBE + "C = 1"),
    ("snips_joint", "label", 0.966, PROBE + "C = 10"),
    ("clinc150", "label", 0.955, PROBE + "C = 10"),
    ("clinc150", "domain", 0.953, PROBE + "C = 1"),
)
DECAYS = (0.001, 0.01)  # weight decays of classifiers to choose from, by the loss on validation
RIDGES = (0.1, 1.0, 10.0)  # of the linear regression that a figure is compared with


@dataclass(frozen=True)
class Frozen:
    """A data set with the encoder's outputs: rows have ``input_ids`` and ``hidden_states`` besides their own."""

    context: Context
    data: str
    core: BertCore
    parts: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(cls, context: Context, data: str) -> Frozen:
        """Run the encoder over a data set."""
        core, tokenizer = context.encoder()
        bound, exact = core.config.max_tokens, not compiles(TrainingArgs())
        collate = Collator(tokenizer.pad_id, tokenizer.padding_side, max_length=bound, exact=exact)
        parts = {}
        for part in PARTS:
            examples = tokenize_examples(context.rows(data, part), tokenizer, bound)
            parts[part] = cache_encoder(core.eval(), examples, collate, 64)
        return cls(context, data, core, parts)

    def labelled(self, labels: Callable[[dict[str, Any]], Any]) -> dict[str, list[dict[str, Any]]]:
        """The rows of each part with their ``labels``."""
        return {part: [{**row, "labels": labels(row)} for row in rows] for part, rows in self.parts.items()}

    def embeddings(self, part: str) -> np.ndarray:
        """Normalised mean vectors ``(N, D)``."""
        means = np.stack([row["hidden_states"].mean(axis=0) for row in self.parts[part]])
        return means.astype(np.float64) / np.linalg.norm(means, axis=1, keepdims=True)

    def head(self, kind: str, outputs: int, **options: Any) -> BertWithHead:
        """A new head with one hidden layer on the mean vector."""
        width = self.core.get_hidden_size()
        config = HeadConfig(
            kind,
            width,
            outputs,
            pooling_type="mean",
            use_input_norm=True,
            input_dropout=0.2,
            hidden_sizes=[width],
            dropout_prob=0.2,
            use_layer_norm=False,
            **options,
        )
        return BertWithHead(self.core, config)

    def train(self, model: BertWithHead, parts: dict[str, list[dict[str, Any]]], **settings: Any) -> Trainer:
        """Train a head; it then has the weights with the lowest loss on validation."""
        defaults = {"epochs": 10, "head_learning_rate": 1e-3, "metric": "loss"}
        # the encoder has run already, once for all heads
        args = self.context.settings(freeze="backbone", cache_encoder=False, **{**defaults, **settings})
        trainer = Trainer(model, TrainingArgs(**args), parts["train"], parts["validation"])
        trainer.train()
        return trainer


def classes(data: str) -> Callable[[Context], list[Figure]]:
    """The recipe of a single head for each label of a set; of two weight decays validation chooses."""

    def run(context: Context) -> list[Figure]:
        frozen = Frozen.of(context, data)
        return [classifier(frozen, *row[1:]) for row in PROBES if row[0] == data]

    return run


def classifier(frozen: Frozen, field: str, reference: float, source: str) -> Figure:
    """Train classifiers of one field and report the one that validation chooses."""
    labels = LabelMap.from_labels(str(row[field]) for rows in frozen.parts.values() for row in rows)
    parts = frozen.labelled(lambda row: labels.index(str(row[field])))
    kind = "binary_classification" if len(labels) == 2 else "multiclass_classification"

    def train(decay: float) -> Trainer:
        mx.random.seed(SEED)
        return frozen.train(
            frozen.head(kind, len(labels)),
            parts,
            output_dir=str(frozen.context.output / f"{field}-{decay}"),
            epochs=20 if len(parts["train"]) < 5000 else 10,
            optimizer="adam",  # its decay is part of the gradient, as in logistic regression
            weight_decay=decay,
        )

    best = min((train(decay) for decay in DECAYS), key=lambda trainer: trainer.state.best_value)
    found = best.evaluate(parts["test"])["accuracy"]
    how = f"frozen encoder, cached; one hidden layer; weight decay {best.args.weight_decay} by validation loss"
    return Figure(frozen.data, f"{field} accuracy", found, reference, source, how)


def emotions(context: Context) -> list[Figure]:
    """Any of 28 emotions; each label's threshold is fitted on validation, for the reference too."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    frozen = Frozen.of(context, "goemotions")
    names = sorted({label for rows in frozen.parts.values() for row in rows for label in row["labels"]})
    parts = frozen.labelled(lambda row: [float(name in row["labels"]) for name in names])
    model = frozen.head("multilabel_classification", len(names))
    trainer = frozen.train(model, parts)
    _, outputs, wanted = evaluate(model, trainer.objective, trainer.feed.eval_batches())
    model.head.fit_thresholds(mx.array(outputs["probabilities"]), wanted)
    found = trainer.evaluate(parts["test"])

    targets = {part: np.array([row["labels"] for row in rows]) for part, rows in parts.items()}
    probe = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1000))
    probe.fit(frozen.embeddings("train"), targets["train"])
    scores = {part: mx.array(probe.predict_proba(frozen.embeddings(part))) for part in ("validation", "test")}
    thresholds = model.head.fit_thresholds(scores["validation"], mx.array(targets["validation"]))
    plain = multilabel_metrics(scores["test"] > thresholds, targets["test"])
    source = PROBE + "C = 10, one a label, thresholds fitted in the same way, computed in the same run"
    return [
        Figure("goemotions", f"{name} F1", found[f"f1_{name}"], plain[f"f1_{name}"], source)
        for name in ("micro", "macro")
    ]


def affect(context: Context) -> list[Figure]:
    """Valence, arousal and dominance of a sentence; the reference is a linear regression."""
    from sklearn.linear_model import Ridge

    frozen = Frozen.of(context, "emobank")
    parts = frozen.labelled(lambda row: row["targets"])
    targets = {part: np.array([row["targets"] for row in rows]) for part, rows in parts.items()}
    model = frozen.head("regression", 3, extra={"num_targets": 3})
    model.head.set_target_normalization(targets["train"].mean(0).tolist(), targets["train"].std(0).tolist())
    trainer = frozen.train(model, parts)
    batches = trainer.feed.eval_batches(parts["test"])
    _, outputs, wanted = evaluate(model, trainer.objective, batches)
    found = pearson(outputs["predictions"], np.array(wanted))

    ridges = [Ridge(alpha).fit(frozen.embeddings("train"), targets["train"]) for alpha in RIDGES]
    held_out = frozen.embeddings("validation"), targets["validation"]
    ridge = max(ridges, key=lambda ridge: ridge.score(*held_out))
    plain = pearson(ridge.predict(frozen.embeddings("test")), targets["test"])
    source = "scikit-learn, ridge regression on the model's normalised embeddings, computed in the same run"
    names = ("valence", "arousal", "dominance")
    return [
        Figure("emobank", f"{name} Pearson", value, reference, source)
        for name, value, reference in zip(names, found, plain, strict=True)
    ]


def pearson(found: np.ndarray, wanted: np.ndarray) -> list[float]:
    """The correlation of each target; both ``(N, K)``."""
    return [float(np.corrcoef(found[:, target], wanted[:, target])[0, 1]) for target in range(wanted.shape[1])]
