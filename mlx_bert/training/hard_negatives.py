"""Hard negatives found by the encoder that is trained, anew every few epochs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_bert.checkpoint import read_json, write_json
from mlx_bert.data.collate import Arrays, token_count
from mlx_bert.data.readers import Example
from mlx_bert.data.samplers import BatchIndices, LengthBucketSampler
from mlx_bert.data.unique_texts import NoDuplicatesSampler
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.search import mine_negative_texts
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.distributed import World
from mlx_bert.training.sentence_data import keys_of, sentence_examples

FOLDER = "hard_negatives"
ROW = "row"


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """Which negatives are added to (anchor, positive) pairs.

    Attributes:
        num_negatives: so many for each pair; where mining finds fewer, random texts fill up.
        every: mine anew after so many epochs; 0 mines once, before the first.
        corpus: texts to mine in, beside all positives.
        options: as for :func:`mlx_bert.inference.search.mine_hard_negatives`: ``range_min``, ``range_max``,
            ``max_score``, ``absolute_margin``, ``relative_margin`` ... They keep out what may be right answers.
    """

    num_negatives: int = 1
    every: int = 1
    corpus: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_negatives < 1 or self.every < 0:
            raise ValueError(
                f"[HardNegatives] expected num_negatives of at least 1 and every of at least 0 but got "
                f"{self.num_negatives} and {self.every}."
            )


class MinedBatches(Callback):
    """Batches of pairs and their mined negatives, which are kept in ``output_dir`` so that a run resumes exactly.

    Args:
        settings: what to mine.
        encoder: the one that is trained.
        pairs: the texts (anchor, positive) of each example.
        examples: the same, tokenised; each is given its number.
        prompts: of the anchors and of all other texts.
        args: batch size, seed, folder.
        batch_sampler: ``"length_buckets"`` or ``"no_duplicates"``; the latter counts the negatives, too.
        world: the ranks of the run: rank 0 mines for all, and keeps what it found.

    Raises:
        ValueError: not two texts in each row, or too few candidates.
    """

    main_only = True  # of the callback: the folder is rank 0's

    def __init__(
        self,
        settings: HardNegatives,
        encoder: SentenceEncoder,
        pairs: Sequence[Sequence[str]],
        examples: Sequence[Example],
        prompts: Sequence[str],
        args: TrainingArgs,
        batch_sampler: str,
        world: World,
    ) -> None:
        if len(pairs[0]) != 2:
            raise ValueError(
                f"[HardNegatives] expected rows of an anchor and a positive but got {len(pairs[0])} texts. "
                "Leave negatives out, or do not mine any."
            )
        self.settings, self.encoder, self.pairs = settings, encoder, pairs
        self.examples, self.prompts, self.args = examples, prompts, args
        self.batch_sampler = batch_sampler
        self.world = world
        self.folder = Path(args.output_dir) / FOLDER
        self.candidates = list(dict.fromkeys([*(positive for _, positive in pairs), *settings.corpus]))
        self.right: dict[str, set[str]] = {}
        for anchor, positive in pairs:
            self.right.setdefault(anchor, {anchor}).add(positive)
        most = max(map(len, self.right.values()))
        if len(self.candidates) - most < settings.num_negatives:
            raise ValueError(
                f"[HardNegatives] expected at least {settings.num_negatives + most} texts to mine in but got "
                f"{len(self.candidates)}. Give a corpus."
            )
        tokenised, _ = sentence_examples(
            [(text,) for text in self.candidates], encoder.tokenizer, encoder.max_seq_length, prompts[1], "corpus"
        )
        self.ids = {text: row["input_ids"][0] for text, row in zip(self.candidates, tokenised, strict=True)}
        self.negatives: list[list[str]] = []
        for number, example in enumerate(examples):
            example[ROW] = number

    def __len__(self) -> int:
        """Batches per epoch, the same for every epoch."""
        return -(-len(self.examples) // self.args.batch_size)

    def batches(self, epoch: int = 0) -> list[BatchIndices]:
        """The batches of an epoch; mines first if it is time."""
        every = self.settings.every
        mined_at = epoch - epoch % every if every else 0
        self.negatives = self.world.on_main(lambda: self._kept_or_mined(mined_at))
        full = [self._with_negatives(example) for example in self.examples]
        if self.batch_sampler == "no_duplicates":
            return NoDuplicatesSampler(keys_of(full), self.args.batch_size, self.args.seed).batches(epoch)
        lengths = [token_count(example) for example in full]
        return LengthBucketSampler(lengths, self.args.batch_size, self.args.seed).batches(epoch)

    def collator(self, collate: Callable[[Sequence[Example]], Arrays]) -> Callable[[Sequence[Example]], Arrays]:
        """``collate``, with the present negatives of the training examples."""
        return lambda examples: collate([self._with_negatives(example) for example in examples])

    def on_train_begin(self, trainer: Any) -> None:
        """A run that begins anew takes nothing from an earlier one."""
        if trainer.state.step == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _with_negatives(self, example: Example) -> Example:
        if ROW not in example:
            return example
        own = [self.ids[text] for text in self.negatives[example[ROW]]]
        return {**example, "input_ids": [*example["input_ids"], *own]}

    def _kept_or_mined(self, epoch: int) -> list[list[str]]:
        path = self.folder / f"epoch_{epoch}.json"
        if path.is_file():
            return read_json(path)["negatives"]
        negatives = self._mine(epoch)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"negatives": negatives})
        return negatives

    def _mine(self, epoch: int) -> list[list[str]]:
        self.encoder.core.eval()
        for module in self.encoder.modules:
            module.eval()
        count = self.settings.num_negatives
        found = mine_negative_texts(
            self.encoder,
            self.pairs,
            self.settings.corpus,
            count,
            prompts=(self.prompts[0], self.prompts[1]),
            **self.settings.options,
        )
        for number, (negatives, (anchor, _)) in enumerate(zip(found, self.pairs, strict=True)):
            random = np.random.default_rng((self.args.seed, epoch, number))
            while len(negatives) < count:
                text = self.candidates[random.integers(len(self.candidates))]
                if text not in self.right[anchor] and text not in negatives:
                    negatives.append(text)
        return found
