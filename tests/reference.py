"""Reference models and tokenizers that the tests build; import as ``from reference import redraw``."""

from pathlib import Path

import mlx.core as mx
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from benchmarks.quality import redraw as redraw

VOCABULARY = (
    "the a an this that it i you we they he she is was are be have has had do did not no and or but so "
    "very too good great bad awful fine nice film movie book food day night city house dog cat bird tree "
    "river sun rain love hate like enjoy want need see hear read eat walk run play work sleep slowly "
    "quickly today tomorrow never always often red blue green small large old new happy sad angry un "
    "##ing ##ed ##s ##ly ##er . , ! ? ' -"
)
WORDS = VOCABULARY.split()


def to_mlx(tensors: dict[str, torch.Tensor]) -> dict[str, mx.array]:
    """A torch state dict in MLX."""
    return {name: mx.array(tensor.detach().numpy()) for name, tensor in tensors.items()}


def word_tokenizer(pad: str = "[PAD]", cls: str = "[CLS]", sep: str = "[SEP]", unk: str = "[UNK]") -> Tokenizer:
    """A small WordPiece tokenizer over ``WORDS`` and single letters."""
    tokens = [pad, unk, cls, sep, "[MASK]", *WORDS]
    tokens += [piece for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for piece in (letter, f"##{letter}")]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=special
    )
    return tokenizer


def save_word_tokenizer(folder: Path, max_length: int = 64) -> None:
    """Write the small tokenizer as transformers would."""
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # as BERT's tokenizer has it
    )
    fast.save_pretrained(folder)
