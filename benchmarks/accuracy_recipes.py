"""How each model of the accuracy benchmark is trained, and the figures that others reached on the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.accuracy_data import Context, Figure, Recipe
from benchmarks.accuracy_frozen import PROBES, affect, classes, emotions
from heads import HeadConfig
from mlx_bert.data.alignment import tag_windows
from mlx_bert.data.kinds import answers
from mlx_bert.data.questions import question_windows
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.evaluators import EmbeddingSimilarityEvaluator
from mlx_bert.joint import JointIntentNER, evaluate_joint, train_joint
from mlx_bert.model import BertWithHead
from mlx_bert.multihead import MultiheadClassifier
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.long_texts import QuestionObjective, TaggingObjective, WindowCollator, numbered
from mlx_bert.training.sentence import SentenceEncoderTrainer
from mlx_bert.training.sentence_losses import CoSENT
from mlx_bert.training.step import compiles
from mlx_bert.training.trainer import Trainer

TORCH_JOINT = "torch, all-MiniLM-L6-v2, linear heads, 6 epochs, lr 3e-4, batch 32, one run"
SQUAD_BASELINE = "published sliding window without training (Rajpurkar et al. 2016), the whole development set"


def multihead(how: str, epochs: int, layers: int, **groups: dict[str, Any]) -> Callable[[Context], list[Figure]]:
    """The recipe of ``MultiheadClassifier`` for all four tasks: 4 epochs of the heads, then some layers with them.

    Args:
        how: what the report says of it.
        epochs: those of the second part.
        layers: layers of the encoder that train in them; with 0 the last weights count, else validation chooses.
        groups: further settings.
    """

    def run(context: Context) -> list[Figure]:
        def tasks(part: str) -> dict[str, list[dict[str, Any]]]:
            found = {
                f"{data} {field}": [{"text": row["text"], "label": row[field]} for row in context.rows(data, part)]
                for data, field, *_ in PROBES
            }
            if part == "train" and layers:  # easy, and the same texts as the intents
                found["clinc150 domain"] = found["clinc150 domain"][::3]
            return found

        training = {
            "model_name": context.model,
            "batch_size": 32,
            "learning_rate": 1e-4,  # and ten times that while the encoder is frozen
            "epochs": epochs,
            "val_size": 0.0,
            "test_size": 0.0,
            "output_dir": str(context.output),
            "dtype": context.dtype,
        }
        encoder = {"freeze_epochs": 4, "unfreeze_layers": layers, "lr_multiplier": 3.0}
        classifier = MultiheadClassifier(
            {**groups, "training": {**training, **groups.get("training", {})}, "encoder": encoder}
        )
        classifier.train(tasks("train"), validation=tasks("validation") if layers else None)
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
    settings = context.settings(
        learning_rate=3e-4,
        head_learning_rate=1e-3,
        schedule="cosine",
        warmup_ratio=0.1,
        epochs=6,
        patience=0,
        metric="sentence_accuracy",
    )
    train_joint(model, parts["train"], parts["validation"], settings, evaluate_train=False)
    found = evaluate_joint(model, parts["test"])
    references = {"intent_accuracy": 0.984, "entity_f1": 0.946, "sentence_accuracy": 0.884}
    return [Figure("snips_joint", name, found[name], value, TORCH_JOINT) for name, value in references.items()]


def similarity(context: Context) -> list[Figure]:
    """Contrastive fine-tuning on graded pairs. The last weights count: validation is what is reported."""
    pairs, held_out = context.rows("stsb", "train"), context.rows("stsb", "validation")
    encoder = SentenceEncoder.from_pretrained(context.model, dtype="float32")
    scores = [row["score"] for row in held_out]
    texts = ([row[column] for row in held_out] for column in ("text_a", "text_b"))
    evaluator = EmbeddingSimilarityEvaluator(*texts, scores, similarities=("cosine",))
    before = evaluator(encoder)["spearman_cosine"]
    settings = context.settings(epochs=1, learning_rate=5e-5, schedule="linear", eval_every="no")
    rows = [{"text_a": row["text_a"], "text_b": row["text_b"], "score": row["score"] / 5} for row in pairs]
    SentenceEncoderTrainer(encoder, TrainingArgs(**settings), rows, loss=CoSENT()).train()
    after = evaluator(encoder)["spearman_cosine"]
    return [
        Figure("stsb", "spearman", after, before, "the same model before training"),
        Figure("stsb", "spearman before", before, 0.8672, "sentence-transformers on torch", "no training"),
    ]


def tagging(context: Context) -> list[Figure]:
    """Named entities with a linear head, everything trained. The last weights count: validation is what is reported."""
    parts = {
        part: [{**row, "text": " ".join(row["tokens"])} for row in context.rows("wnut17", part)]
        for part in ("train", "validation")
    }
    core, tokenizer = context.encoder()
    tags = sorted({tag for rows in parts.values() for row in rows for tag in row["tags"]})
    train, held_out = (tag_windows(rows, tokenizer, tags) for rows in parts.values())
    model = BertWithHead(core, HeadConfig("token_classification", core.get_hidden_size(), len(tags)))
    windows = numbered(held_out)
    settings = context.settings(epochs=3, learning_rate=3e-4, head_learning_rate=1e-3, eval_every="no")
    objective = TaggingObjective(windows, parts["validation"], tags)
    found = windowed(model, tokenizer, settings, train, windows, objective)
    source = "published BERT-base on the test set: 0.40 to 0.48"
    return [Figure("wnut17", "entity F1", found["entity_f1"], 0.40, source)]


def questions(context: Context) -> list[Figure]:
    """Answers that stand in a text, everything trained. The last weights count: validation is what is reported."""

    def rows(part: str) -> list[dict[str, Any]]:
        return [{**row, "answers": answers(row["answers"], "answers")} for row in context.rows("squad11", part)]

    core, tokenizer = context.encoder()
    train = question_windows(rows("train"), tokenizer)
    windows = numbered(question_windows(rows("validation"), tokenizer, keep=True))
    model = BertWithHead(core, HeadConfig("question_answering", core.get_hidden_size(), 2))
    settings = context.settings(
        epochs=2, batch_size=16, learning_rate=2e-4, head_learning_rate=1e-3, eval_batch_size=32, eval_every="no"
    )
    found = windowed(model, tokenizer, settings, train, windows, QuestionObjective(windows))
    return [
        Figure("squad11", name, found[key], reference, SQUAD_BASELINE)
        for name, key, reference in (("exact match", "exact_match", 0.132), ("F1", "f1", 0.202))
    ]


def windowed(
    model: BertWithHead,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    train: list[dict[str, Any]],
    windows: list[dict[str, Any]],
    objective: Any,
) -> dict[str, float]:
    """Train on windows over texts and measure the whole texts that ``windows`` and ``objective`` are of."""
    args, bound = TrainingArgs(**settings), model.bert.config.max_tokens
    collate = WindowCollator(tokenizer.pad_id, tokenizer.padding_side, max_length=bound, exact=not compiles(args))
    trainer = Trainer(model, args, train, collate=collate, objective=objective)
    trainer.train()
    return trainer.evaluate(windows)


def choices(context: Context) -> list[Figure]:
    """Which of four ends completes a sentence, everything trained; compared with the end nearest in meaning."""
    core, tokenizer = context.encoder()
    parts = {
        part: [
            {"text": row["question"], "choices": row["choices"], "labels": row["label"]}
            for row in context.rows("codah", part)
        ]
        for part in ("train", "validation", "test")
    }
    model = BertWithHead(core, HeadConfig("multiple_choice", core.get_hidden_size(), 1, pooling_type="mean"))
    settings = context.settings(epochs=4, batch_size=16, learning_rate=1e-4, head_learning_rate=1e-3, metric="accuracy")
    trainer = Trainer(model, TrainingArgs(**settings), parts["train"], parts["validation"], tokenizer)
    trainer.train()
    found = trainer.evaluate(parts["test"])["accuracy"]
    source = "the end nearest to the beginning by the untrained model's embeddings; 0.25 by chance"
    return [Figure("codah", "accuracy", found, nearest(context.model, parts["test"]), source)]


def nearest(model: str, rows: list[dict[str, Any]]) -> float:
    """How often the right choice is the one most similar to the text."""
    encoder = SentenceEncoder.from_pretrained(model)
    texts = encoder.encode([row["text"] for row in rows], normalize_embeddings=True)
    ends = encoder.encode([end for row in rows for end in row["choices"]], normalize_embeddings=True)
    scores = np.einsum("nd,ncd->nc", texts, ends.reshape(len(rows), -1, texts.shape[1]))
    return float(np.mean(scores.argmax(axis=1) == [row["labels"] for row in rows]))


SINGLE = "a head with one hidden layer on the frozen encoder, cached"
CLASSIFIED = ("uci_sentiment", "snips_joint", "clinc150")
RECIPES = {
    **{f"head-{data.split('_')[0]}": Recipe(SINGLE, (data,), classes(data)) for data in CLASSIFIED},
    "multihead-frozen": Recipe(
        "MultiheadClassifier, four tasks at once, frozen encoder",
        CLASSIFIED,
        multihead(
            "20 epochs, encoder frozen; linear heads with the references' C as weight decay",
            16,
            0,
            # D / (C N): the norm makes vectors sqrt(D) times as long as those that the references are fitted on
            training={
                "optimizer": "adam",
                "task_weight_decay": {
                    "uci_sentiment label": 0.183,
                    "snips_joint label": 0.00293,
                    "clinc150 label": 0.00256,
                    "clinc150 domain": 0.0256,
                },
            },
            head={"hidden_layers": 0, "dropout": 0.0, "input_norm": True},
            loss={"use_class_weights": False, "label_smoothing": 0.0},
        ),
    ),
    "multihead": Recipe(
        "MultiheadClassifier, four tasks at once, then 2 layers unfrozen",
        CLASSIFIED,
        multihead("4 epochs of the heads, 2 with the top 2 layers", 2, 2, eval={"patience": 0}),
    ),
    "similarity": Recipe("CoSENT on graded pairs, all of the encoder trained, 1 epoch", ("stsb",), similarity),
    "emotions": Recipe(f"multi-label: {SINGLE}", ("goemotions",), emotions),
    "affect": Recipe(f"regression of three targets: {SINGLE}", ("emobank",), affect),
    "tagging": Recipe("linear token head, all of the encoder trained, 3 epochs", ("wnut17",), tagging),
    "choices": Recipe("multiple-choice head, all of the encoder trained, 4 epochs", ("codah",), choices),
    "questions": Recipe("answers in windows, all of the encoder trained, 2 epochs", ("squad11",), questions),
    "joint": Recipe("intent and BiLSTM tagger on one encoder, all of it trained, 6 epochs", ("snips_joint",), joint),
}
