"""What the tiny checkpoints of these tests are made of."""

from __future__ import annotations

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), ".", "!"]
TEXTS = ["abc def", "a", "hello there world.", "the quick brown fox jumps over the lazy dog!"]


def tiny_config(**options):
    from transformers import BertConfig

    return BertConfig(
        **{
            "vocab_size": len(VOCABULARY),
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 64,
            **options,
        }
    )
