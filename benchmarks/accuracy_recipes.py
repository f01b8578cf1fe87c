"""How each model of the accuracy benchmark is trained, and the figures that others reached on the same data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads import HeadConfig
from heads.metrics import entity_metrics
from mlx_bert.core import BertCore
from mlx_bert.data.alignment import tag_examples
from mlx_bert.data.collate import Collator, tokenize_examples
from mlx_bert.data.labels import LabelMap
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.evaluators import EmbeddingSimilarityEvaluator
from mlx_bert.joint import JointIntentNER, evaluate_joint, train_joint
from mlx_bert.model import BertWithHead
from mlx_bert.multihead import MultiheadClassifier
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.encoder_cache import cache_encoder
from mlx_bert.training.objective import HeadObjective, evaluate
from mlx_bert.training.sentence import SentenceEncoderTrainer
from mlx_bert.training.sentence_losses import CoSENT
from mlx_bert.training.trainer import Trainer

LAYOUT = {
    "uci_sentiment": "text, label",
    "clinc150": "text, label (the intent), domain",
    "goemotions": "text, labels (a list of names)",
    "emobank": "text, targets (three numbers)",
    "wnut17": "tokens, tags (BIO, one per token)",
    "stsb": "text_a, text_b, score (0 to 5)",
    "snips_joint": "text, tokens, tags (BIO, one per token), label (the intent)",
}
SEED = 42
PROBE = "scikit-learn, logistic regression on the model's normalised embeddings, "
# data, field of the label, figure, source; the better one where C = 1 and C = 10 were tried
PROBES = (
    ("uci_sentiment", "label", 0.913, PROBE + "C = 1"),
    ("snips_joint", "label", 0.966, PROBE + "C = 10"),
    ("clinc150", "label", 0.955, PROBE + "C = 10"),
    ("clinc150", "domain", 0.953, PROBE + "C = 1"),
)
DECAYS = (0.001, 0.01)  # weight decays to choose from, by the loss on validation
TORCH_JOINT = "torch, all-MiniLM-L6-v2, linear heads, 6 epochs, lr 3e-4, batch 32, one run"


@dataclass(frozen=True)
class Context:
    """What a recipe works with.

    Attributes:
        model: folder or hub id of the encoder.
        data: the folder of all data sets.
        output: an empty folder for runs.
        dtype: type of the computation.
        limit: rows to take of each file, evenly spaced; None for all.
    """

    model: str
    data: Path
    output: Path
    dtype: str
    limit: int | None

    def rows(self, data: str, part: str) -> list[dict[str, Any]]:
        """The rows of a file."""
        with (self.data / data / f"{part}.jsonl").open(encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines if line.strip()]
        count = min(self.limit or len(found), len(found))
        return [found[len(found) * number // count] for number in range(count)]

    def encoder(self) -> tuple[BertCore, Tokenizer]:
        """The encoder, fresh, and its tokenizer; new weights are then drawn from the same seed."""
        core = BertCore.from_pretrained(self.model)
        mx.random.seed(SEED)
        return core, Tokenizer.from_pretrained(self.model)


@dataclass(frozen=True)
class Figure:
    """One number that a recipe reached, and what it is compared with."""

    data: str
    name: str
    value: float
    reference: float | None = None
    source: str | None = None
    how: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A way of training: one line about it, its data sets, the function."""

    what: str
    data: tuple[str, ...]
    run: Callable[[Context], Sequence[Figure]]


def probe(data: str) -> Callable[[Context], list[Figure]]:
    """The recipe of a single head with one hidden layer on the frozen encoder's mean vector, for each label of a set.

    The encoder runs once; of two weight decays the one with the lower loss on validation is taken.
    """

    def run(context: Context) -> list[Figure]:
        core, tokenizer = context.encoder()
        collate = Collator(tokenizer.pad_id, tokenizer.padding_side)
        rows = {}
        for part in ("train", "validation", "test"):
            examples = tokenize_examples(context.rows(data, part), tokenizer, core.config.max_tokens)
            rows[part] = cache_encoder(core.eval(), examples, collate, 64)
        return [
            head_figure(context, core, rows, data, field, reference, source)
            for name, field, reference, source in PROBES
            if name == data
        ]

    return run


def head_figure(
    context: Context,
    core: BertCore,
    rows: dict[str, list[dict[str, Any]]],
    data: str,
    field: str,
    reference: float,
    source: str,
) -> Figure:
    """Train heads on cached outputs and report the one that validation chooses."""
    labels = LabelMap.from_labels(str(row[field]) for part in rows.values() for row in part)
    parts = {part: [{**row, "labels": labels.index(str(row[field]))} for row in found] for part, found in rows.items()}
    width = core.get_hidden_size()
    config = HeadConfig(
        "binary_classification" if len(labels) == 2 else "multiclass_classification",
        width,
        len(labels),
        pooling_type="mean",
        use_input_norm=True,
        input_dropout=0.2,
        hidden_sizes=[width],
        dropout_prob=0.2,
        use_layer_norm=False,
    )

    def train(decay: float) -> tuple[float, Trainer]:
        mx.random.seed(SEED)
        args = TrainingArgs(
            output_dir=str(context.output / f"{field}-{decay}"),
            epochs=20 if len(parts["train"]) < 5000 else 10,
            batch_size=32,
            head_learning_rate=1e-3,
            optimizer="adam",  # its decay is part of the gradient, as in logistic regression
            weight_decay=decay,
            freeze="backbone",
            cache_encoder=False,  # done above, once for all
            metric="loss",
            dtype=context.dtype,
            save_every="no",
            seed=SEED,
        )
        trainer = Trainer(BertWithHead(core, config), args, parts["train"], parts["validation"])
        return trainer.train().metrics["loss"], trainer

    _, best = min((train(decay) for decay in DECAYS), key=lambda tried: tried[0])
    found = best.evaluate(parts["test"])["accuracy"]
    how = f"frozen encoder, cached; one hidden layer; weight decay {best.args.weight_decay} by validation loss"
    return Figure(data, f"{field} accuracy", found, reference, source, how)


def multihead(epochs: int, layers: int, how: str) -> Callable[[Context], list[Figure]]:
    """The recipe of ``MultiheadClassifier`` for all four tasks: the heads first, then ``layers`` layers with them."""

    def run(context: Context) -> list[Figure]:
        def tasks(part: str) -> dict[str, list[dict[str, Any]]]:
            found = {
                f"{data} {field}": [{"text": row["text"], "label": row[field]} for row in context.rows(data, part)]
                for data, field, *_ in PROBES
            }
            if part == "train":  # easy, and the same texts as the intents
                found["clinc150 domain"] = found["clinc150 domain"][::3]
            return found

        classifier = MultiheadClassifier(
            {
                "training": {
                    "model_name": context.model,
                    "batch_size": 32,
                    "learning_rate": 1e-4,  # and ten times that while the encoder is frozen
                    "epochs": epochs,
                    "weight_decay": 0.01,
                    "test_size": 0.0,
                    "output_dir": str(context.output),
                },
                "encoder": {"freeze_epochs": 4, "unfreeze_layers": layers, "lr_multiplier": 3.0},
                "eval": {"patience": 0},
            }
        )
        classifier.train(tasks("train"), validation=tasks("validation"))
        found = classifier.analyze(data=tasks("test"))
        return [
            Figure(data, f"{field} accuracy", found[f"{data} {field}"]["accuracy"], reference, source, how)
            for data, field, reference, source in PROBES
        ]

    return run


def joint(context: Context) -> list[Figure]:
    """Intent and slots of SNIPS from one encoder, fine-tuned whole."""
    parts = {
        part: [
            {"text": " ".join(row["tokens"]), "intent": row["label"], "tags": row["tags"]}
            for row in context.rows("snips_joint", part)
        ]
        for part in ("train", "validation", "test")
    }
    core, tokenizer = context.encoder()
    intents = sorted({row["intent"] for rows in parts.values() for row in rows})
    tags = sorted({tag for rows in parts.values() for row in rows for tag in row["tags"]} | {"O"})
    model = JointIntentNER(core, tokenizer, intents, tags)
    settings = {
        "learning_rate": 3e-4,
        "head_learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_ratio": 0.1,
        "epochs": 5,
        "patience": 0,
        "metric": "sentence_accuracy",
        "dtype": context.dtype,
        "output_dir": str(context.output / "joint"),
        "save_every": "no",
        "seed": SEED,
    }
    train_joint(model, parts["train"], parts["validation"], settings)
    found = evaluate_joint(model, parts["test"])
    references = {"intent_accuracy": 0.984, "entity_f1": 0.946, "sentence_accuracy": 0.884}
    return [Figure("snips_joint", name, found[name], value, TORCH_JOINT) for name, value in references.items()]


def similarity(context: Context) -> list[Figure]:
    """Contrastive fine-tuning on graded pairs. The last weights count: validation is what is reported."""
    pairs, held_out = context.rows("stsb", "train"), context.rows("stsb", "validation")
    encoder = SentenceEncoder.from_pretrained(context.model)
    scores = [row["score"] for row in held_out]
    texts = ([row[column] for row in held_out] for column in ("text_a", "text_b"))
    evaluator = EmbeddingSimilarityEvaluator(*texts, scores, similarities=("cosine",))
    before = evaluator(encoder)["spearman_cosine"]
    args = TrainingArgs(
        output_dir=str(context.output),
        epochs=1,
        batch_size=32,
        learning_rate=5e-5,
        schedule="linear",
        warmup_ratio=0.1,
        dtype=context.dtype,
        eval_every="no",
        save_every="no",
        seed=SEED,
    )
    rows = [{"text_a": row["text_a"], "text_b": row["text_b"], "score": row["score"] / 5} for row in pairs]
    SentenceEncoderTrainer(encoder, args, rows, loss=CoSENT()).train()
    after = evaluator(encoder)["spearman_cosine"]
    return [
        Figure("stsb", "spearman", after, before, "the same model before training"),
        Figure("stsb", "spearman before", before, 0.8672, "sentence-transformers on torch", "no training"),
    ]


def tagging(context: Context) -> list[Figure]:
    """Named entities with a linear head, everything trained."""
    parts = {
        part: [{"text": " ".join(row["tokens"]), "tags": row["tags"]} for row in context.rows("wnut17", part)]
        for part in ("train", "validation")
    }
    core, tokenizer = context.encoder()
    tags = sorted({tag for rows in parts.values() for row in rows for tag in row["tags"]})
    train, held_out = (
        [{**row, "labels": row["tag_ids"]} for row in tag_examples(rows, tokenizer, tags, core.config.max_tokens)]
        for rows in parts.values()
    )
    model = BertWithHead(core, HeadConfig("token_classification", core.get_hidden_size(), len(tags)))
    args = TrainingArgs(
        output_dir=str(context.output),
        epochs=3,
        batch_size=32,
        learning_rate=3e-4,
        head_learning_rate=1e-3,
        dtype=context.dtype,
        eval_every="no",
        save_every="no",
        seed=SEED,
    )
    trainer = Trainer(model, args, train, tokenizer=tokenizer)
    trainer.train()
    order = sorted(range(len(held_out)), key=lambda number: len(held_out[number]["input_ids"]))
    found: list[list[str]] = []
    for start in range(0, len(order), 64):
        chosen = [held_out[number] for number in order[start : start + 64]]
        batch = trainer.feed.collate(chosen)
        outputs = HeadObjective().forward(model, batch)
        for row, ids in zip(chosen, np.array(outputs["predictions"]), strict=True):
            found.append([tags[number] for number in ids[: len(row["starts"])][row["starts"]]])
    wanted = [[tags[number] for number in held_out[n]["tag_ids"][held_out[n]["starts"]]] for n in order]
    value = entity_metrics(found, wanted)["entity_f1"]
    return [Figure("wnut17", "entity F1", value, 0.40, "published BERT-base on the test set: 0.40 to 0.48")]


def emotions(context: Context) -> list[Figure]:
    """Any of 28 emotions on the frozen encoder; the thresholds are fitted on validation."""
    core, tokenizer = context.encoder()
    rows = {part: context.rows("goemotions", part) for part in ("train", "validation", "test")}
    names = sorted({label for found in rows.values() for row in found for label in row["labels"]})
    parts = {
        part: [{"text": row["text"], "labels": [float(name in row["labels"]) for name in names]} for row in found]
        for part, found in rows.items()
    }
    width = core.get_hidden_size()
    head = HeadConfig(
        "multilabel_classification",
        width,
        len(names),
        pooling_type="mean",
        use_input_norm=True,
        hidden_sizes=[width],
        dropout_prob=0.2,
    )
    model = BertWithHead(core, head)
    trainer = Trainer(model, frozen_args(context, "loss"), parts["train"], parts["validation"], tokenizer)
    trainer.train()
    outputs = evaluate(model, trainer.objective, trainer.feed.eval_batches())
    model.head.fit_thresholds(mx.array(outputs[1]["probabilities"]), outputs[2])
    found = trainer.evaluate(parts["test"])
    return [Figure("goemotions", f"{name} F1", found[f"f1_{name}"]) for name in ("micro", "macro")]


def valence(context: Context) -> list[Figure]:
    """Valence, arousal and dominance of a sentence, on the frozen encoder."""
    core, tokenizer = context.encoder()
    parts = {
        part: [{"text": row["text"], "labels": row["targets"]} for row in context.rows("emobank", part)]
        for part in ("train", "validation", "test")
    }
    width = core.get_hidden_size()
    head = HeadConfig(
        "regression",
        width,
        3,
        pooling_type="mean",
        use_input_norm=True,
        hidden_sizes=[width],
        dropout_prob=0.2,
        extra={"num_targets": 3},
    )
    model = BertWithHead(core, head)
    targets = np.array([row["labels"] for row in parts["train"]])
    model.head.set_target_normalization(targets.mean(0).tolist(), targets.std(0).tolist())
    trainer = Trainer(model, frozen_args(context, "loss"), parts["train"], parts["validation"], tokenizer)
    trainer.train()
    outputs, labels = evaluate(
        model, trainer.objective, trainer.feed.eval_batches(trainer.feed.prepare(parts["test"], "test"))
    )[1:]
    each = [np.corrcoef(outputs["predictions"][:, n], np.array(labels)[:, n])[0, 1] for n in range(3)]
    names = ("valence", "arousal", "dominance")
    return [Figure("emobank", f"{name} Pearson", float(value)) for name, value in zip(names, each, strict=True)]


def frozen_args(context: Context, metric: str) -> TrainingArgs:
    """Settings of a head on the frozen encoder."""
    return TrainingArgs(
        output_dir=str(context.output),
        epochs=10,
        batch_size=32,
        head_learning_rate=1e-3,
        freeze="backbone",
        metric=metric,
        dtype=context.dtype,
        save_every="no",
        seed=SEED,
    )


SINGLE = "a head with one hidden layer on the frozen encoder, cached"
CLASSIFIED = ("uci_sentiment", "snips_joint", "clinc150")
RECIPES = {
    **{f"head-{data.split('_')[0]}": Recipe(SINGLE, (data,), probe(data)) for data in CLASSIFIED},
    "multihead-frozen": Recipe(
        "MultiheadClassifier, four tasks at once, frozen encoder",
        CLASSIFIED,
        multihead(4, 0, "8 epochs, encoder frozen"),
    ),
    "multihead": Recipe(
        "MultiheadClassifier, four tasks at once, then 2 layers unfrozen",
        CLASSIFIED,
        multihead(2, 2, "4 epochs of the heads, 2 with the top 2 layers"),
    ),
    "similarity": Recipe("CoSENT on graded pairs, all of the encoder trained, 1 epoch", ("stsb",), similarity),
    "emotions": Recipe("multi-label head on the frozen encoder, cached", ("goemotions",), emotions),
    "valence": Recipe("regression head with three targets on the frozen encoder, cached", ("emobank",), valence),
    "tagging": Recipe("linear token head, all of the encoder trained, 3 epochs", ("wnut17",), tagging),
    "joint": Recipe("intent and BiLSTM tagger on one encoder, all of it trained, 5 epochs", ("snips_joint",), joint),
}
