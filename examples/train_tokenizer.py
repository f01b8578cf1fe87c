"""Train a byte-level BPE tokenizer on text and walk through what it does.

    python examples/train_tokenizer.py [FILE ...] [--output DIR] [--vocab-size 1000]

FILE is plain text in UTF-8, of any size; without one, the sentences in examples/data are used. DIR (tokenizer_output)
then holds bpe_merged.json and tokenizer.json, which pretrain_sentence_encoder.py takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from mlx_bert import ByteLevelBPE

DATA = Path(__file__).resolve().parent / "data"
SAMPLE = "Don't forget: the café opens at 6pm, 中文 menus and 😀 included."


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE", type=Path, help="plain text (sentences of examples/data)")
    parser.add_argument("--output", type=Path, default=Path("tokenizer_output"), help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=1000, help="bytes, merges and two special ids (1000)")
    options = parser.parse_args()
    try:
        run(options.files, options.output, options.vocab_size)
    except (ValueError, OSError) as error:
        print(f"train_tokenizer: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(files: list[Path], output: Path, vocab_size: int) -> ByteLevelBPE:
    """Train, save, read again, and show a text on its way to ids and back."""
    started = time.perf_counter()
    if files:
        tokenizer = ByteLevelBPE.train_from_files(files, vocab_size, progress=True)
    else:
        tokenizer = ByteLevelBPE.train(example_sentences(), vocab_size)
    print(f"{len(tokenizer.merges)} merges in {time.perf_counter() - started:.1f} s")
    tokenizer.save_pretrained(output)
    tokenizer = ByteLevelBPE.from_file(output)
    pieces = tokenizer.encode(SAMPLE)
    print(f"text:    {SAMPLE}")
    print(f"pieces:  {[tokenizer.decode(ids) for ids in pieces]}")
    print(f"ids:     {pieces}")
    print(f"decoded: {tokenizer.decode(pieces)}")
    if tokenizer.decode(pieces) != SAMPLE:
        raise ValueError("[train_tokenizer] expected the decoded text to equal the text but it differs.")
    count = sum(map(len, pieces))
    print(f"{len(SAMPLE)} characters, {count} tokens: {len(SAMPLE) / count:.2f} characters per token")
    print(f"written to {output}")
    return tokenizer


def example_sentences() -> list[str]:
    """The training texts of examples/data."""
    paths = sorted(DATA.glob("*/train.jsonl"))
    rows = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    return [row["text"] for row in rows if "text" in row]


if __name__ == "__main__":
    sys.exit(main())
