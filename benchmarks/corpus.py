"""Texts to measure with: real sentences, joined and cut to lengths like those that search and classification see."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent.parent / "examples" / "data"
SETS = ("emotion", "intent", "sentiment")  # results compare only while these stay what they are
MEDIAN_WORDS, SPREAD, LONGEST_WORDS = 25, 0.8, 180  # of the log-normal distribution of lengths; spread is its sigma
SEED = 0


@cache
def sentences() -> tuple[str, ...]:
    """Every training text of three sets of ``examples/data``.

    Raises:
        FileNotFoundError: the folder is not there: benchmarks run from a checkout.
    """
    files = [DATA / name / "train.jsonl" for name in SETS]
    if not all(file.is_file() for file in files):
        raise FileNotFoundError(f"[benchmarks] {DATA} has no texts. Run benchmarks from a checkout of the repository.")
    return tuple(json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines())


def ragged_texts(count: int = 256) -> list[str]:
    """Texts with log-normal lengths: a median near 25 words and a tail to 180. The same for the same ``count``."""
    source = random.Random(SEED)
    texts = []
    for _ in range(count):
        words = max(1, min(LONGEST_WORDS, round(source.lognormvariate(0, SPREAD) * MEDIAN_WORDS)))
        found: list[str] = []
        while len(found) < words:
            found += source.choice(sentences()).split()
        texts.append(" ".join(found[:words]))
    return texts
