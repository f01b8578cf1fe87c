"""Tiny task models with their tokenizers, transformers' own pipelines over them, and how results are compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from reference import redraw, save_word_tokenizer, word_tokenizer

TEXTS = [
    "The movie was good, nice unwatchable film!",
    "a dog walked",
    "xyz Ünknown 東 word",
    "walking slowly never " * 12,
]
LONG = "The small dog walked slowly, and we never needed the bad film. Paul saw it in the old city: great! " * 5
TINY = {
    "vocab_size": word_tokenizer().get_vocab_size(),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
RELATIVE = {  # an encoder for which it does not matter where in a row a text stands
    "model_type": "modernbert",
    "vocab_size": 200,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def save(folder: Path, kind: str, labels: list[str] | None = None, **options) -> Path:
    """Write ``Bert<kind>`` with redrawn weights and the small tokenizer."""
    if labels:
        names = dict(enumerate(labels))
        options |= {"num_labels": len(labels), "id2label": names}
        options["label2id"] = {name: number for number, name in names.items()}
    config = transformers.BertConfig(**TINY, **options)
    redraw(getattr(transformers, f"Bert{kind}")(config)).save_pretrained(folder)
    save_word_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def save_byte_tokenizer(folder: Path) -> None:
    """Put a byte-level tokenizer in the place of a folder's: it has no prefix for parts of words."""
    fast = Tokenizer(models.BPE(unk_token="[UNK]"))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    fast.train_from_iterator([LONG], trainers.BpeTrainer(vocab_size=150, special_tokens=special))
    fast.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), add_prefix_space=False)
    fast.save(str(folder / "tokenizer.json"))


def theirs(task: str, folder: Path):
    """transformers' pipeline over the same folder."""
    return transformers.pipeline(task, model=str(folder), device="cpu")


def assert_alike(ours, wanted):
    """Equal but for the last digits of numbers."""
    assert type(ours) is type(wanted) or isinstance(ours, float)
    if isinstance(wanted, dict):
        assert list(ours) == list(wanted)
        for key in wanted:
            assert_alike(ours[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(ours) == len(wanted)
        for a, b in zip(ours, wanted, strict=True):
            assert_alike(a, b)
    elif isinstance(wanted, float | np.floating):
        assert ours == pytest.approx(float(wanted), rel=1e-5, abs=1e-5)
    else:
        assert ours == wanted


def assert_same_in_any_batch(pipe, inputs, **options):
    """One by one, in batches of one text, in a list, and from a generator: the same results."""
    together = pipe(list(inputs), **options)
    assert len(together) == len(inputs)
    pipe.batch_size = 1
    assert_alike(pipe(list(inputs), **options), together)
    streamed = pipe((item for item in inputs), **options)
    assert next(streamed)
    assert_alike(list(pipe(iter(inputs), **options)), together)
    pipe.batch_size = 32
