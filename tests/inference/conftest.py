"""Sentence-encoder fixtures: the real MiniLM, its reference, and tiny folders of every kind."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlx_bert.inference.encode import SentenceEncoder

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"ABC", ":", "query", "doc"]


@pytest.fixture(scope="session")
def encoder(minilm_source) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(minilm_source)


@pytest.fixture(scope="session")
def reference(minilm_source):
    """sentence-transformers on torch, the same weights."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm_source), device="cpu")


@pytest.fixture(scope="session")
def ragged_texts(minilm_source) -> list[str]:
    """64 texts of very different lengths, one empty, one too long, some with odd characters."""
    random = np.random.default_rng(0)
    words = (minilm_source / "vocab.txt").read_text(encoding="utf-8").split()[2000:20000]
    counts = [0, 400, 1, 2, *np.clip(random.lognormal(3.0, 0.9, 57), 1, 200).astype(int)]
    odd = ["naïve Ångström 東京 🙂", "  spaces\tand\nlines  ", "[SEP] a [MASK] b"]
    return [" ".join(random.choice(words, count)) for count in counts] + odd


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random BERT folder with redrawn weights and a character tokenizer, made by transformers."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = BertModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    fast = Tokenizer(models.WordLevel({token: index for index, token in enumerate(VOCAB)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"query|doc|\S"), "removed", invert=True)
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=fast, model_max_length=48, model_input_names=inputs, **special
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def build_folder(tiny_bert, tmp_path):
    """``build(modules, lengths=None, model=None)`` makes a sentence-transformers folder over the tiny encoder.

    A module is its type and config, and state for a Dense or LayerNorm as a torch module.
    """
    import shutil

    from safetensors.torch import save_file

    def build(modules, lengths=None, model=None):
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_bert, folder)
        listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        for index, (kind, config, *state) in enumerate(modules, start=1):
            place = f"{index}_{kind.rpartition('.')[2]}"
            (folder / place).mkdir()
            if config is not None:
                (folder / place / "config.json").write_text(json.dumps(config))
            if state:
                save_file(state[0].state_dict(), folder / place / "model.safetensors")
            listed.append({"idx": index, "name": str(index), "path": place, "type": kind})
        (folder / "modules.json").write_text(json.dumps(listed))
        if lengths:
            (folder / "sentence_bert_config.json").write_text(json.dumps(lengths))
        if model:
            (folder / "config_sentence_transformers.json").write_text(json.dumps(model))
        return folder

    return build
