"""``SentenceEncoderTrainer``: fine-tune a ``SentenceEncoder`` on pairs, triplets, scores or a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_bert.data.readers import Example
from mlx_bert.data.unique_texts import NoDuplicatesSampler
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.distributed import RankShares, World
from mlx_bert.training.hard_negatives import HardNegatives, MinedBatches
from mlx_bert.training.lora import merge_lora
from mlx_bert.training.outcome import TrainResult
from mlx_bert.training.sentence_data import (
    Prompts,
    Row,
    SentenceCollator,
    keys_of,
    prompts_of,
    sentence_examples,
    texts_of,
)
from mlx_bert.training.sentence_losses import SentenceLoss
from mlx_bert.training.sentence_objective import GatheredObjective, SentenceModel, SentenceObjective
from mlx_bert.training.step import compiles
from mlx_bert.training.trainer import Trainer

SAMPLERS = ("length_buckets", "no_duplicates")
Evaluator = Callable[[SentenceEncoder], Mapping[str, float]]


class SentenceEncoderTrainer(Trainer):
    """Fine-tunes a sentence encoder, in place: the transformer and the modules behind it, at one learning rate.

    ``best_model/`` and ``final_model/`` in ``args.output_dir`` are folders that ``SentenceEncoder.from_pretrained`` and
    sentence-transformers load. A run resumes exactly (:meth:`Trainer.train`)::

        encoder = SentenceEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
        train = [{"text_a": "A plane takes off.", "text_b": "A plane is leaving.", "score": 0.9}, ...]
        trainer = SentenceEncoderTrainer(
            encoder,
            TrainingArgs(output_dir="sts", epochs=1, batch_size=32, learning_rate=1e-4),
            train,
            loss=CoSENT(),
            evaluator=EmbeddingSimilarityEvaluator(first, second, scores),
        )
        trainer.train()
        encoder.encode(["A plane is landing."])

    Args:
        encoder: its weights become float32.
        args: the settings. ``metric`` is the evaluator's primary metric if not set; ``head_learning_rate``, that of
            the modules behind the encoder, is ``learning_rate`` if not set; ``max_length`` is the encoder's
            ``max_seq_length`` if not set.
        train_examples: dicts whose column ``label``, ``labels``, ``score`` or ``scores`` is the label and whose other
            columns are the texts, in order; or tuples of texts. How many texts, and which labels, the loss says.
        eval_examples: the same, for the loss and its metrics.
        loss: see :mod:`mlx_bert.training.sentence_losses`.
        evaluator: called with the encoder at each evaluation; its metrics join those of ``eval_examples``. See
            :mod:`mlx_bert.inference.evaluators`.
        prompts: goes before each text, or one for each column; None for the encoder's default prompt, if it has one.
        batch_sampler: ``"length_buckets"``, or ``"no_duplicates"``: no text is twice in a batch.
        hard_negatives: add mined negatives to the (anchor, positive) pairs, before and during the training.
        gather_across_ranks: of data-parallel training (docs/distributed.md): take the loss over the batches of all
            ranks, so that in-batch negatives are those of all; otherwise each rank has its own.
        callbacks: called in order.

    Raises:
        ValueError: no examples, or examples or settings that do not fit the loss.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        args: TrainingArgs,
        train_examples: Sequence[Row],
        eval_examples: Sequence[Row] | None = None,
        *,
        loss: SentenceLoss,
        evaluator: Evaluator | None = None,
        prompts: Prompts | None = None,
        batch_sampler: str = "length_buckets",
        hard_negatives: HardNegatives | None = None,
        gather_across_ranks: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if batch_sampler not in SAMPLERS:
            raise ValueError(
                f"[SentenceEncoderTrainer] expected batch_sampler to be one of {', '.join(SAMPLERS)} but got "
                f"{batch_sampler!r}."
            )
        if isinstance(loss, type) or not callable(loss):
            raise ValueError(
                f"[SentenceEncoderTrainer] expected a loss such as MultipleNegativesRanking(), made, but got {loss!r}."
            )
        self.encoder = encoder
        self.evaluator = evaluator
        self.measures_without_examples = evaluator is not None
        self.prompts = prompts if prompts is not None else encoder.prompt_text()
        if args.metric is None and evaluator is not None:
            args = replace(args, metric=getattr(evaluator, "primary_metric", None))
        if args.head_learning_rate is None:
            args = replace(args, head_learning_rate=args.learning_rate)
        self.max_length = min(args.max_length or encoder.max_seq_length, encoder.max_seq_length)
        train, columns = self._examples(train_examples, "train_examples")
        evaluation = None if eval_examples is None else self._examples(eval_examples, "eval_examples")[0]
        mined = hard_negatives.num_negatives if hard_negatives else 0
        check_fit(loss, len(columns) + mined, "labels" in train[0], "train_examples")
        if evaluation:
            check_fit(loss, len(evaluation[0]["input_ids"]), "labels" in evaluation[0], "eval_examples")
        tokenizer = encoder.tokenizer
        collate: Any = SentenceCollator(
            tokenizer.pad_id, tokenizer.padding_side, max_length=self.max_length, exact=not compiles(args)
        )
        before = prompts_of(columns, self.prompts)
        world = World()
        gather = gather_across_ranks and world.size > 1
        batch_size = args.batch_size * (world.size if gather else 1)  # of a batch that the ranks share
        sampler: Any = None
        if hard_negatives is not None:
            pairs = [list(texts_of(row).values()) for row in train_examples]
            whole = replace(args, batch_size=batch_size)
            sampler = MinedBatches(hard_negatives, encoder, pairs, train, before, whole, batch_sampler, world)
            collate, callbacks = sampler.collator(collate), [*callbacks, sampler]
        elif batch_sampler == "no_duplicates":
            sampler = NoDuplicatesSampler(keys_of(train), batch_size, args.seed)
        if gather and sampler is not None:
            sampler = RankShares(sampler, world, split=True)
        lengths = [encoder.prompt_length(prompt) for prompt in before]
        objective = GatheredObjective(loss, lengths, world) if gather else SentenceObjective(loss, lengths)
        super().__init__(
            SentenceModel(encoder), args, train, evaluation, collate=collate, objective=objective,
            callbacks=callbacks, sampler=sampler,
        )  # fmt: skip

    def train(self, resume: bool | str | Path = False) -> TrainResult:
        """:meth:`Trainer.train`; adapters (``args.lora``) are merged afterwards, so that the encoder is a plain one."""
        result = super().train(resume)
        merge_lora(self.model)
        return result

    def _prepared(self, examples: Sequence[Row]) -> list[Example]:
        return self._examples(examples, "examples")[0]

    def _measure(self) -> dict[str, float]:
        found = {} if self.feed.evaluation is None else super()._measure()
        return {**found, **(self.evaluator(self.encoder) if self.evaluator else {})}

    def _examples(self, rows: Sequence[Row], name: str) -> tuple[list[Example], list[str]]:
        return sentence_examples(rows, self.encoder.tokenizer, self.max_length, self.prompts, name)


def check_fit(loss: SentenceLoss, texts: int, labelled: bool, name: str) -> None:
    """Check that examples have the texts and labels that a loss takes.

    Raises:
        ValueError: they don't.
    """
    least, most = loss.texts
    if texts < least or (most is not None and texts > most):
        wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(
            f"[SentenceEncoderTrainer] expected {wanted} texts in each row of {name} for {type(loss).__name__} but got "
            f"{texts}. Drop columns, or choose another loss."
        )
    if loss.needs_labels and not labelled:
        raise ValueError(
            f"[SentenceEncoderTrainer] expected a label in each row of {name} for {type(loss).__name__} but got none. "
            "Name the column label or score."
        )
