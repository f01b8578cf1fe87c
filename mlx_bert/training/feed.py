"""The data of a run: examples made ready, batches by index, the cache of a frozen encoder's outputs."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_bert.data.collate import Arrays, Collator, token_count, tokenize_examples
from mlx_bert.data.labels import class_numbers
from mlx_bert.data.readers import Example
from mlx_bert.data.samplers import BatchIndices, LengthBucketSampler, balanced_weights
from mlx_bert.data.sources import records
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.distributed import RankShares, World
from mlx_bert.training.encoder_cache import cache_encoder, cache_on_disk, can_cache
from mlx_bert.training.objective import HeadObjective, Objective

logger = logging.getLogger(__name__)
TOKEN_LEVEL_HEADS = ("token_classification", "text_generation")


def default_collator(model: Any, tokenizer: Tokenizer | None, exact: bool = False) -> Collator:
    """Pads with the tokenizer's id (else the encoder's), labels too for heads that label tokens.

    ``exact`` is :class:`Collator`'s.
    """
    config = getattr(getattr(model, "bert", None), "config", None)
    head = getattr(model, "head", None)
    tasks = getattr(head, "task_heads", None) or {}
    of_tokens = [name for name, own in tasks.items() if str(own.head_type) in TOKEN_LEVEL_HEADS]
    pad_id = tokenizer.pad_id if tokenizer else getattr(config, "pad_token_id", None) or 0
    return Collator(
        pad_id,
        tokenizer.padding_side if tokenizer else "right",
        token_labels=str(getattr(head, "head_type", None)) in TOKEN_LEVEL_HEADS or of_tokens,
        max_length=config.max_tokens if config is not None else None,
        exact=exact,
    )


def labels_are_classes(model: Any, objective: Objective) -> bool | list[str]:
    """Whether the labels that a loss takes are numbers of classes; of a head of several tasks, the tasks of which."""
    if type(objective) is not HeadObjective:
        return False
    head = getattr(model, "head", None)
    tasks = getattr(head, "task_heads", None)
    if tasks:
        return [name for name, own in tasks.items() if own.labels_are_classes]
    return getattr(head, "labels_are_classes", False)


class Feed:
    """Training and evaluation examples of a run, batch by batch.

    Args:
        args: batch sizes, sampling, ``max_length``, the bound of the cache.
        train: dicts with ``labels`` and ``input_ids`` or ``text``.
        evaluation: the same; None for no evaluation.
        tokenizer: for examples of text.
        collate: examples -> batch.
        sampler: batches of each epoch, which the ranks take by turns, or this rank's ``RankShares`` of them; None makes
            length-bucketed shuffled ones.
        needs_labels: whether every example must have ``labels``.
        world: the processes that share the batches; None for this one alone. ``batch_size`` is that of each.
        classes: whether ``labels`` are numbers of classes, or the tasks of which they are.

    Raises:
        ValueError: no examples, texts without a tokenizer, ``args.sampling`` beside a sampler, or labels that are no
            classes where they must be.
    """

    def __init__(
        self,
        args: TrainingArgs,
        train: Sequence[Example],
        evaluation: Sequence[Example] | None,
        tokenizer: Tokenizer | None,
        collate: Callable[[Sequence[Example]], Arrays],
        sampler: Any = None,
        needs_labels: bool = True,
        world: World | None = None,
        classes: bool | Sequence[str] = False,
    ) -> None:
        if sampler is not None and args.sampling != "shuffle":
            raise ValueError(
                f"[Trainer] expected sampling 'shuffle' where the batches come from {type(sampler).__name__} but got "
                f"{args.sampling!r}. Leave sampling out."
            )
        self.args = args
        self.world = world
        ranks = world.size if world else 1
        self.tokenizer = tokenizer
        self.collate = collate
        self.needs_labels = needs_labels
        self.classes = classes
        self.train = self.prepare(train, "train_examples")
        self.evaluation = self.prepare(evaluation, "eval_examples") if evaluation is not None else None
        lengths = [token_count(example) for example in self.train]
        whole = sampler or LengthBucketSampler(lengths, ranks * args.batch_size, args.seed, weights=self._weights())
        # a sampler of one's own made whole batches on purpose (of one task, without duplicates)
        alone = ranks == 1 or isinstance(sampler, RankShares)
        self.sampler = whole if alone else RankShares(whole, world, split=sampler is None)
        self._cached: dict[str, list[Example]] = {}

    def prepare(self, examples: Sequence[Example], name: str) -> list[Example]:
        """Check and tokenise examples."""
        examples = records(examples)
        if not examples:
            raise ValueError(f"[Trainer] expected at least one example in {name} but got none. Check the data.")
        if any("input_ids" not in example for example in examples):
            if self.tokenizer is None:
                raise ValueError(f"[Trainer] expected input_ids, or texts and a tokenizer, in {name} but got neither.")
            examples = tokenize_examples(examples, self.tokenizer, self.args.max_length)
        if not self.needs_labels:
            return examples
        if lacking := [number for number, example in enumerate(examples) if "labels" not in example]:
            raise ValueError(
                f"[Trainer] expected 'labels' in every example of {name} but example {lacking[0]} has none. "
                "Encode them, for example with encode_labels."
            )
        if self.classes:
            return class_numbers(examples, name, None if self.classes is True else self.classes)
        return examples

    def collated(self, group: Sequence[BatchIndices]) -> list[Arrays | None]:
        """The training batches of one update; None for an empty one, which a rank may have."""
        examples = self._cached.get("train", self.train)
        return [
            self.collate([examples[index] for index in batch.indices]) if len(batch.indices) else None
            for batch in group
        ]

    def eval_batches(self, examples: Sequence[Example] | None = None) -> Iterator[Arrays]:
        """Every example once, sorted by length; None for the evaluation examples. Of several ranks each has its share,
        batches by turns."""
        chosen = self._cached.get("evaluation", self.evaluation) if examples is None else examples
        sampler = LengthBucketSampler([token_count(example) for example in chosen], self.eval_size, shuffle=False)
        own = sampler.batches()[self.world.rank :: self.world.size] if self.world else sampler.batches()
        return (self.collate([chosen[index] for index in batch.indices]) for batch in own)

    @property
    def eval_size(self) -> int:
        """Examples per batch where nothing is trained."""
        return self.args.eval_batch_size or 2 * self.args.batch_size

    def cache(self, bert: Any, stop: Callable[[], bool] = bool) -> None:
        """Run the frozen encoder once over all examples and feed its outputs from now on, if they fit the bound.

        Args:
            bert: the encoder.
            stop: whether to give up, asked before each batch.

        Raises:
            KeyboardInterrupt: ``stop`` said so, on any rank.
        """
        self.drop_cache()
        parts = {"train": self.train, **({"evaluation": self.evaluation} if self.evaluation else {})}
        if not hasattr(self.collate, "texts"):
            logger.warning(
                "[cache] the frozen encoder runs in every epoch: its outputs are not kept for texts that change "
                "(masked anew, with mined negatives), or with a collator of one's own."
            )
            return
        if not can_cache(list(parts.values()), self.collate, bert.get_hidden_size(), self.args.cache_limit_mb):
            return
        bert.eval()
        cached, files = {}, []
        for name, examples in parts.items():
            bar = self._bar(f"encode {name}") if self.args.progress else None
            given = (bert, examples, self.collate, self.eval_size, bar, stop, self.world)
            if self.args.cache_dir is None:
                cached[name] = cache_encoder(*given)
                continue
            try:
                cached[name], path = cache_on_disk(Path(self.args.cache_dir), self.args.cache_limit_mb, *given, files)
                files.append(path)
            except ConnectionError:
                raise
            except OSError as error:
                logger.warning("[cache] cache_dir cannot be used: %s. The encoder runs in every epoch.", error)
                if self.world is None or self.world.size == 1:
                    return
        self._cached = cached if cached.keys() == parts.keys() else {}

    def drop_cache(self) -> None:
        """Feed token ids again."""
        self._cached = {}

    @property
    def is_cached(self) -> bool:
        """Whether batches hold encoder outputs in place of ids."""
        return bool(self._cached)

    def name_of(self, batch: BatchIndices) -> str:
        """What a message calls the examples of a batch: their lines in the file, if known."""
        shown = []
        for index in batch.indices[:8]:
            line = None if batch.task else self.train[index].get("line")
            shown.append(f"line {line}" if line else f"{f'{batch.task} ' if batch.task else ''}example {index}")
        more = f" and {len(batch.indices) - 8} more" if len(batch.indices) > 8 else ""
        return ", ".join(shown) + more

    def fingerprint(self) -> str:
        """A short digest of the training data: a resumed run must have the same."""
        digest = 0
        for example in self.train:
            ids = example["input_ids"]
            for row in ids if np.ndim(ids[0]) else [ids]:
                digest = zlib.crc32(np.asarray(row, dtype=np.int32).tobytes(), digest)
            digest = zlib.crc32(repr(example.get("labels")).encode(), digest)
        return f"{len(self.train)} examples, {digest:08x}"

    def _weights(self) -> list[float] | None:
        if self.args.sampling == "shuffle":
            return None
        if self.args.sampling == "weighted":
            weights = [example.get("weight") for example in self.train]
            if None in weights or not sum(weights) > 0:
                raise ValueError(
                    "[Trainer] expected a weight in every example, not all 0, with sampling 'weighted'. Give them."
                )
            return weights
        labels = [example["labels"] for example in self.train]
        if any(isinstance(label, dict) or np.ndim(label) or not float(label).is_integer() for label in labels):
            raise ValueError("[Trainer] expected one class per example with sampling 'class_balanced'. Use 'shuffle'.")
        return balanced_weights([int(label) for label in labels])

    @staticmethod
    def _bar(description: str) -> Any:
        from tqdm import tqdm

        return lambda batches: tqdm(batches, desc=description, unit="batch", leave=False, dynamic_ncols=True)
