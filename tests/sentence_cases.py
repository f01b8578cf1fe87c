"""A tiny sentence encoder and triplets to train it on, for tests of its trainer."""

import mlx.core as mx
import numpy as np

from mlx_bert.core import BertCore
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.sentence_modules import Dense, Normalize, Pooling
from mlx_bert.inference.settings import EncoderSettings
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs

GOOD, BAD = ("good", "great", "happy", "nice"), ("bad", "awful", "sad", "angry")


def encoder_of(folder, dropout=0.0, include_prompt=True):
    """A tiny encoder with mean pooling, a dense layer and normalisation."""
    core = BertCore.from_pretrained(folder, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    mx.random.seed(3)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": include_prompt}
    dense = {"in_features": 32, "out_features": 16, "activation_function": "torch.nn.modules.activation.Tanh"}
    settings = EncoderSettings(max_seq_length=16, prompts={"task": "find : "})
    return SentenceEncoder(
        core, Tokenizer.from_pretrained(folder), [Pooling(pooling), Dense(dense), Normalize()], settings
    )


def sentences(count, seed=0):
    """Triplets: the positive has words of the anchor's kind, the negative of the other."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        same, other = (GOOD, BAD) if number % 2 else (BAD, GOOD)
        words = [*random.choice(same, 2), random.choice(other)]
        texts = [f"the {random.choice(['dog', 'cat', 'book', 'city'])} is {word}" for word in words]
        rows.append(dict(zip(("anchor", "positive", "negative"), texts, strict=True)))
    return rows


def settings(folder, **options):
    defaults = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "progress": False}
    return TrainingArgs(output_dir=str(folder), **{**defaults, **options})
