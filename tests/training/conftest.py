"""A toy task on a tiny encoder: three classes told apart by one word each."""

import random
from types import SimpleNamespace

import pytest

WORDS = ("the", "movie", "book", "food", "day", "night", "city", "house", "dog", "cat", "very", "so", "it", "that")
MARKERS = {"neg": ("bad", "awful", "sad"), "neutral": ("small", "old", "green"), "pos": ("good", "great", "happy")}


def toy_rows(count: int, seed: int = 0) -> list[dict]:
    """Texts of 3 to 12 words, one of which decides the label."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = list(MARKERS)[number % 3]
        words = [rng.choice(WORDS) for _ in range(rng.randint(2, 11))]
        words.insert(rng.randrange(len(words) + 1), rng.choice(MARKERS[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


@pytest.fixture(scope="session")
def toy(tiny_bert_folder):
    """Tokenizer, label map, encoded examples, and a maker of equal models."""
    import mlx.core as mx

    from mlx_bert.data.labels import LabelMap, encode_labels
    from mlx_bert.data.readers import read_examples
    from mlx_bert.factory import create_bert_with_head
    from mlx_bert.tokenizer import Tokenizer

    labels = LabelMap(tuple(MARKERS))

    def examples(count: int, seed: int = 0) -> list[dict]:
        return encode_labels(read_examples(toy_rows(count, seed)), labels)

    def model(dropout: float = 0.1, head_type: str = "multiclass_classification", num_labels: int = 3, **options):
        mx.random.seed(7)
        built = create_bert_with_head(
            bert_name=tiny_bert_folder,
            head_type=head_type,
            num_labels=num_labels,
            dropout_prob=dropout,
            id2label=labels.to_dict() if num_labels == 3 else None,
            pooling_type="mean",
            **options,
        )
        set_dropout(built, dropout)
        mx.eval(built.parameters())
        return built

    return SimpleNamespace(
        tokenizer=Tokenizer.from_pretrained(tiny_bert_folder),
        labels=labels,
        examples=examples,
        model=model,
        folder=tiny_bert_folder,
    )


def set_dropout(model, probability: float) -> None:
    """Give every dropout of a model this probability."""
    import mlx.nn as nn

    for _, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module._p_1 = 1 - probability
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = probability
