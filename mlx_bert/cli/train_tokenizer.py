"""Training a byte-level BPE tokenizer on plain texts."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from mlx_bert.bpe import FILE, MAX_LENGTH, VOCAB_SIZE, ByteLevelBPE
from mlx_bert.checkpoint import write_json
from mlx_bert.cli.config_file import CONFIG_FILE, resolved
from mlx_bert.cli.train_masked_lm import plain_texts
from mlx_bert.training.args import given_arguments
from mlx_bert.training.distributed import World

SETTINGS = ("output_dir", "progress", "max_length")  # the only ones that mean something here
SHOWN = 60


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, train, save, print; of several ranks rank 0 does it for all."""
    return World().on_main(lambda: _train(args, settings))


def _train(args: argparse.Namespace, settings: Any) -> int:
    from mlx_bert.cli.train import option_parser

    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    options = {action.dest: action.option_strings[0] for action in option_parser()._actions}
    given = {"resume": args.resume, "model": args.model, "eval": args.eval} | {
        name: value != defaults[name] for name, value in given_arguments(args).items() if name not in SETTINGS
    }
    if meant := [options[name] for name, value in given.items() if value]:
        raise ValueError(f"[train] expected no {', '.join(meant)} with --task tokenizer: it has no meaning there.")
    folder = Path(settings.output_dir)
    if (folder / FILE).exists():
        raise FileExistsError(f"[train] {folder} has a tokenizer already. Choose another --output.")
    size = VOCAB_SIZE if args.vocab_size is None else args.vocab_size
    progress = {"vocab_size": size, "progress": settings.progress}
    if Path(args.train).suffix.lower() == ".txt":
        tokenizer = ByteLevelBPE.train_from_files(args.train, **progress)
        texts = plain_texts(args.train, args)[:1]
    else:
        texts = plain_texts(args.train, args)
        tokenizer = ByteLevelBPE.train(texts, **progress)
    tokenizer.save_pretrained(folder, settings.max_length or MAX_LENGTH)
    own = {"output_dir": settings.output_dir, "progress": settings.progress, "vocab_size": size}
    write_json(folder / CONFIG_FILE, resolved(option_parser(), args, own))
    sample = texts[0][:SHOWN]
    pieces = [tokenizer.decode([number]) for number in tokenizer.tokenize(sample)[1:]]
    print(f"vocabulary  {tokenizer.vocab_size:,} ids, {len(tokenizer.merges):,} of them merges")
    print(f"example     {' | '.join(pieces)}")
    print(f"\nTokenizer: {folder}")
    print(f"Options:   {folder / CONFIG_FILE}")
    print(f"Try it:    mlx-bert train --task compact --model {folder} --train triplets.jsonl --output encoder")
    return 0
