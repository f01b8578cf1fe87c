"""``JointIntentNER``: the intent of a sentence and a tag for each of its words, from one encoder.

    model = JointIntentNER(core, tokenizer, intents=["play", "book"], tags=["O", "artist", "city"])
    train_joint(model, [{"text": "play some bach", "intent": "play", "tags": ["O", "O", "artist"]}, ...])
    model.predict(["book a table in rome"])

Dimensions: B batch, L tokens, D hidden size, P width of the sentence vector, I intents, C tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import Encoding

from heads import HeadConfig, TokenClassificationHead
from heads.initialization import truncated_normal_linear
from heads.losses import cross_entropy
from heads.metrics import entity_metrics
from mlx_bert.checkpoint import (
    FromPretrained,
    entries_of,
    float_dtype,
    load_strict,
    read_json,
    write_json,
    write_safetensors,
)
from mlx_bert.core import BertCore, BertOutput
from mlx_bert.data.alignment import first_tokens, tag_examples, word_spans, words_of_tokens
from mlx_bert.data.collate import IGNORE_INDEX, Arrays, Collator, token_count
from mlx_bert.data.labels import LabelMap
from mlx_bert.data.readers import Example
from mlx_bert.data.samplers import LengthBucketSampler
from mlx_bert.inference.batching import run_batches
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Batch, Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.objective import evaluate, loss_weight
from mlx_bert.training.step import compiles
from mlx_bert.training.train_metrics import TrainMetrics
from mlx_bert.training.trainer import Trainer, TrainResult

PARTS = ("all", "backbone", "intent", "ner")
SENTENCES = ("pooler", "cls")
OUTSIDE = "O"
TAG_WEIGHT = 3.0  # in the loss, of every tag but O: most words have none
TAGGED_ROW, PLAIN_ROW = 5.0, 3.0  # how often rows with and without tags are drawn
CONFIG_FILE = "joint_config.json"
WEIGHTS_FILE = "joint.safetensors"
ENCODER_FOLDER = "bert"
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "head_learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine_per_epoch",
    "warmup_ratio": 0.0,
    "epochs": 500,
    "patience": 5,
    "batch_size": 32,
    "max_grad_norm": 1.0,
}


class JointIntentNER(FromPretrained, nn.Module):
    """An encoder with a linear layer on the sentence vector and a BiLSTM tagger on the tokens.

    The tagger is a two-layer BiLSTM of ``D / 2`` per direction, LayerNorm, Linear, GELU, dropout, Linear.

    Args:
        bert: the encoder.
        tokenizer: its tokenizer; None for a model that is given ids only.
        intents: names, in the order of their ids.
        tags: the same; ``"O"``, for words without a tag, must be there.
        dropout: probability in the tagger.
        sentence: what the intent is read from: ``"pooler"``, the encoder's projection of the first token's state
            (that state itself in encoders without one), or ``"cls"``, the state as it is.

    Raises:
        ValueError: an unknown ``sentence``, or no ``"O"``.
    """

    def __init__(
        self,
        bert: BertCore,
        tokenizer: Tokenizer | None,
        intents: Sequence[str],
        tags: Sequence[str],
        dropout: float = 0.1,
        sentence: str = "pooler",
    ) -> None:
        super().__init__()
        if sentence not in SENTENCES:
            raise ValueError(f"[joint] expected sentence to be one of {', '.join(SENTENCES)} but got {sentence!r}.")
        if OUTSIDE not in tags:
            raise ValueError(f"[joint] expected the tag 'O' among {', '.join(tags)} but it is not there. Add it.")
        self.bert = bert
        self.bert.compute_additional_pooling = False
        self.tokenizer = tokenizer
        self._labels = LabelMap(tuple(intents)), LabelMap(tuple(tags))
        self.dropout_prob = dropout
        self.sentence = sentence
        hidden = bert.get_hidden_size()
        has_pooler = sentence == "pooler" and getattr(bert.encoder, "pooler", None) is not None
        width = getattr(bert.config, "projection_size", hidden) if has_pooler else hidden
        self.intent_head = truncated_normal_linear(width, len(intents))
        self.ner_head = TokenClassificationHead(
            HeadConfig(
                "token_classification",
                hidden,
                len(tags),
                dropout_prob=dropout,
                class_weights=[1.0 if tag == OUTSIDE else TAG_WEIGHT for tag in tags],
                extra={"rnn_layers": 2, "rnn_hidden": hidden // 2, "rnn_dropout": dropout},
            )
        )
        self.eval()

    @property
    def intents(self) -> list[str]:
        """Names of the intents, in the order of their ids."""
        return list(self._labels[0].names)

    @property
    def tags(self) -> list[str]:
        """Names of the tags, in the order of their ids."""
        return list(self._labels[1].names)

    def __call__(
        self, input_ids: mx.array, attention_mask: mx.array | None = None, token_type_ids: mx.array | None = None
    ) -> dict[str, mx.array]:
        """``intent_logits`` ``(B, I)`` and ``ner_logits`` ``(B, L, C)``, float32, in one run of the encoder.

        Args:
            input_ids: integers ``(B, L)``.
            attention_mask: ``(B, L)``, 1 for real tokens; None when nothing is padded.
            token_type_ids: ``(B, L)`` or None.
        """
        encoded = self.bert(input_ids, attention_mask, token_type_ids)
        if self.reads_states:
            return self.from_states(encoded.last_hidden_state, attention_mask)
        return self._outputs(encoded)

    def from_states(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        """The same from the encoder's ``hidden_states`` ``(B, L, D)``, if :attr:`reads_states`."""
        pooler = getattr(self.bert.encoder, "pooler", None)
        hidden_states = hidden_states.astype(self.intent_head.weight.dtype)  # heads in float32 pool in float32
        return self._outputs(BertOutput(hidden_states, attention_mask, pooler=pooler))

    def _outputs(self, encoded: BertOutput) -> dict[str, mx.array]:
        sentence = encoded.pooler_output if self.sentence == "pooler" else encoded.cls_output
        tokens = self.ner_head(encoded.last_hidden_state, encoded.attention_mask)["logits"]
        return {
            "intent_logits": self.intent_head(sentence).astype(mx.float32),
            "ner_logits": tokens.astype(mx.float32),
        }

    # --- freezing -----------------------------------------------------------------------------------------------------

    def freeze(self, part: str = "all", num_layers: int | None = None, **options: Any) -> Self:
        """Keep a part as it is, in addition to what is frozen already; :meth:`unfreeze` lets everything train again.

        Args:
            part: ``"all"``; ``"backbone"``, the encoder; ``"intent"`` or ``"ner"``, one head, whose loss then does not
                count.
            num_layers: of the backbone, freeze the embeddings and this many bottom layers only.
            options: as for ``mlx.nn.Module.freeze``, with ``"all"``.

        Raises:
            ValueError: an unknown part, or a number of layers that are not there.
        """
        if part not in PARTS:
            raise ValueError(f"[joint] expected part to be one of {', '.join(PARTS)} but got {part!r}.")
        if num_layers is not None and (part != "backbone" or not 0 < num_layers <= self.bert.get_num_layers()):
            raise ValueError(
                f"[joint] expected num_layers from 1 to {self.bert.get_num_layers()}, with part 'backbone', but got "
                f"{num_layers} with {part!r}."
            )
        if part == "all":
            return super().freeze(**options)
        if num_layers is not None:
            for module in (self.bert.encoder.embeddings, *self.bert.encoder.layers[:num_layers]):
                module.freeze()
        else:
            {"backbone": self.bert, "intent": self.intent_head, "ner": self.ner_head}[part].freeze()
        return self

    # what the settings freeze, unfreeze_layers, freeze_epochs and gradual_unfreezing ask of a model
    freeze_bert = BertWithHead.freeze_bert
    unfreeze_bert = BertWithHead.unfreeze_bert

    @property
    def reads_pooler(self) -> bool:
        """Whether the intent is read from the encoder's pooler, which then trains with the encoder."""
        return self.sentence == "pooler"

    @property
    def reads_states(self) -> bool:
        """Whether the heads read the encoder's hidden states alone, so that these can be kept while it is frozen."""
        return self.sentence == "cls" or self.bert.config.model_type != "cnn_hybrid"  # which pools otherwise

    def is_frozen(self, part: str) -> bool:
        """Whether nothing of ``"backbone"``, ``"intent"`` or ``"ner"`` trains."""
        module = {"backbone": self.bert, "intent": self.intent_head, "ner": self.ner_head}[part]
        return not tree_flatten(module.trainable_parameters())

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; parts that are frozen whole stay without dropout."""
        super().train(mode)
        if mode and self.is_frozen("backbone"):
            self.bert.eval()
        return self

    # --- prediction ---------------------------------------------------------------------------------------------------

    def predict(
        self, texts: str | Sequence[str], batch_size: int = 32, max_length: int | None = None
    ) -> list[dict[str, Any]]:
        """The intent of each text and the tags of its words.

        Args:
            texts: any number; a single string is a list of one.
            batch_size: a batch holds as many tokens as this many texts of 128.
            max_length: longer texts are cut to so many tokens; None for the encoder's bound.

        Returns:
            For each text ``intent``, ``confidence`` (its probability), ``words`` (runs without white space) and
            ``tags`` (one per word: that of its first token; ``"O"`` for words that were cut off).

        Raises:
            ValueError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("[joint] expected a tokenizer but the model has none. Set model.tokenizer.")
        texts = [texts] if isinstance(texts, str) else list(texts)
        mx.eval(self.eval().state)  # batches may run in another thread, which cannot finish this one's work
        left = self.tokenizer.padding_side == "left"

        def forward(batch: Batch, encodings: list[Encoding]) -> list[Any]:
            outputs = self(*batch)
            return [mx.softmax(outputs["intent_logits"], axis=-1), mx.argmax(outputs["ner_logits"], axis=-1), encodings]

        results: list[dict[str, Any]] = [{} for _ in texts]
        options = {"batch_size": batch_size, "max_length": max_length, "model": self}
        for places, (*arrays, encodings) in run_batches(texts, self.tokenizer, forward, **options):
            probabilities, tokens = (np.array(array) for array in arrays)
            for row, place in enumerate(places):
                encoding = encodings[row]
                length = len(encoding)
                own = tokens[row, -length:] if left else tokens[row, :length]
                results[place] = self._described(texts[place], encoding, probabilities[row], own)
        return results

    def _described(self, text: str, encoding: Encoding, probabilities: np.ndarray, tokens: np.ndarray) -> dict:
        spans = word_spans(text)
        words = words_of_tokens(encoding.offsets, encoding.special_tokens_mask, spans)
        tags = [OUTSIDE] * len(spans)
        for place in np.flatnonzero(first_tokens(words)):
            tags[words[place]] = self.tags[tokens[place]]
        best = int(probabilities.argmax())
        return {
            "intent": self.intents[best],
            "confidence": float(probabilities[best]),
            "words": [text[start:end] for start, end in spans],
            "tags": tags,
        }

    # --- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write ``bert/`` with the tokenizer, ``joint.safetensors`` and ``joint_config.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.bert.save_pretrained(folder / ENCODER_FOLDER)
        if tokenizer := tokenizer or self.tokenizer:
            tokenizer.save_pretrained(folder / ENCODER_FOLDER)
        own = {name: array for name, array in tree_flatten(self.parameters()) if not name.startswith("bert.")}
        write_safetensors(folder / WEIGHTS_FILE, entries_of(own))
        settings = {"intents": self.intents, "tags": self.tags, "dropout": self.dropout_prob, "sentence": self.sentence}
        write_json(folder / CONFIG_FILE, settings)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: str | mx.Dtype | None = None) -> Self:
        """Load what :meth:`save_pretrained` wrote.

        Args:
            folder: that folder.
            dtype: type of the encoder's weights; None keeps them as stored. With any, the heads' are float32.

        Raises:
            FileNotFoundError: files are missing.
            ValueError: the settings cannot be used, or the weights do not fit.
        """
        folder = Path(folder)
        config = read_json(folder / CONFIG_FILE)
        core = BertCore.from_pretrained(folder / ENCODER_FOLDER, dtype)
        has_tokenizer = (folder / ENCODER_FOLDER / "tokenizer.json").is_file()
        tokenizer = Tokenizer.from_pretrained(folder) if has_tokenizer else None
        try:
            model = cls(core, tokenizer, **config)
        except TypeError as error:
            raise ValueError(f"[joint] {folder / CONFIG_FILE} cannot be used: {error}. Save the model again.") from None
        own = nn.Module()
        own.intent_head, own.ner_head = model.intent_head, model.ner_head
        own_dtype = None if float_dtype(dtype) is None else mx.float32
        load_strict(own, mx.load(str(folder / WEIGHTS_FILE), format="safetensors"), own_dtype, "joint")
        return model


# --- training ---------------------------------------------------------------------------------------------------------


class JointObjective:
    """``CE_intent + CE_ner``, the latter with class weights; the loss of a frozen head does not count in training."""

    def forward(self, model: JointIntentNER, batch: Arrays) -> dict[str, mx.array]:
        """The logits of both heads."""
        if "hidden_states" in batch:
            return model.from_states(batch["hidden_states"], batch.get("attention_mask"))
        return model(batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids"))

    def losses(
        self, model: JointIntentNER, outputs: Mapping[str, Any], labels: Mapping[str, Any]
    ) -> dict[str, mx.array]:
        """``intent`` and ``ner``, scalars."""
        return {
            "intent": cross_entropy(outputs["intent_logits"], labels["intent"]),
            "ner": model.ner_head.compute_loss({"logits": outputs["ner_logits"]}, labels["tags"]),
        }

    def weights(self, model: JointIntentNER, labels: Mapping[str, Any] | None) -> mx.array:
        """The sentences, and the tags by the weights of their classes; zeros for None."""
        if labels is None:
            return mx.zeros(2)
        return mx.stack([mx.array(float(labels["intent"].shape[0])), loss_weight(model.ner_head, labels["tags"])])

    def loss(self, model: JointIntentNER, outputs: Mapping[str, Any], batch: Arrays) -> tuple[mx.array, mx.array]:
        """The loss of each task, and :meth:`weights`."""
        each = self.losses(model, outputs, batch["labels"])
        counted = [mx.array(0.0) if model.training and model.is_frozen(part) else loss for part, loss in each.items()]
        return mx.stack(counted), self.weights(model, batch["labels"])

    def metrics(self, model: JointIntentNER, outputs: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, float]:
        """Loss and accuracy of each task, by token for the tags; by word, precision, recall and f1 of entities.

        ``sentence_accuracy`` is the share of sentences of which the intent and the tags of all words are right.
        """
        each = self.losses(model, outputs, labels)
        predicted, wanted = np.array(outputs["ner_logits"]).argmax(-1), np.array(labels["tags"])
        intents = np.array(outputs["intent_logits"]).argmax(-1)
        starts = np.array(labels["starts"]) == 1
        names = model.tags
        rows = [
            [[names[tag] for tag in ids[first]] for ids, first in zip(part, starts, strict=True)]
            for part in (predicted, wanted)
        ]
        known = wanted != IGNORE_INDEX
        whole = [row == other for row, other in zip(*rows, strict=True)]
        right = intents == np.array(labels["intent"])
        return {
            **{f"{part}_loss": float(loss) for part, loss in each.items()},
            "intent_accuracy": float(np.mean(right)),
            "ner_accuracy": float(np.mean(predicted[known] == wanted[known])),
            "sentence_accuracy": float(np.mean(right & np.array(whole))),
            **entity_metrics(*rows),
        }


def joint_collator(tokenizer: Tokenizer, max_length: int | None = None, exact: bool = False) -> Collator:
    """Pads ids and the tags of tokens: ``labels`` {intent ``(B,)``, tags ``(B, L)``, starts ``(B, L)``}.

    Args:
        tokenizer: of the model.
        max_length, exact: as for ``Collator``.
    """
    return Collator(tokenizer.pad_id, tokenizer.padding_side, ("tags", "starts"), max_length, exact)


def joint_examples(model: JointIntentNER, rows: Sequence[Example], max_length: int | None = None) -> list[Example]:
    """Rows with ``text``, ``intent`` (a name) and ``tags`` (a name per word) as examples for the trainer.

    Raises:
        ValueError: unknown names, tags that are not one per word, or a model without tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("[joint] expected a tokenizer but the model has none. Set model.tokenizer.")
    intents = model._labels[0]
    return [
        {
            "input_ids": row["input_ids"],
            "labels": {
                "intent": intents.index(row["intent"]),
                "tags": row["tag_ids"],
                "starts": row["starts"].astype(np.int32),
            },
        }
        for row in tag_examples(rows, model.tokenizer, model.tags, max_length)
    ]


def train_joint(
    model: JointIntentNER,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    args: Mapping[str, Any] | None = None,
    resume: bool | str | Path = False,
    evaluate_train: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train both heads and what of the encoder is not frozen.

    Rows with a tag are drawn more often than those without (5 to 3), with replacement; where all rows are of one kind,
    an epoch takes each once. Without settings: AdamW with 5e-5 for the encoder and 1e-3 for the heads, a cosine over
    the epochs, until the validation loss has not improved for 5 epochs.

    Args:
        model: it has the best weights afterwards.
        train, validation: rows for :func:`joint_examples`.
        args: settings of ``TrainingArgs`` that replace the defaults.
        resume: as for ``Trainer.train``.
        evaluate_train: also measure the training rows at each epoch's end, which costs a pass over them.
        callbacks: as for ``Trainer``.

    Returns:
        What the run came to; its records have the metrics of :class:`JointObjective` as ``train_*`` and ``eval_*``.

    Raises:
        ValueError: as :func:`joint_examples`, or wrong settings.
    """
    return joint_trainer(model, train, validation, args, evaluate_train, callbacks).train(resume)


def joint_trainer(
    model: JointIntentNER,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    args: Mapping[str, Any] | None = None,
    evaluate_train: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """What :func:`train_joint` runs, ready to be started; the arguments are the same."""
    patience = {} if validation is not None else {"patience": 0}
    settings = TrainingArgs.from_dict({**DEFAULTS, **patience, **(args or {})})
    examples = joint_examples(model, train, settings.max_length)
    held_out = None if validation is None else joint_examples(model, validation, settings.max_length)
    tokenizer = model.tokenizer
    weights = [TAGGED_ROW if set(row["tags"]) - {OUTSIDE} else PLAIN_ROW for row in train]
    sampler = LengthBucketSampler(
        [token_count(example) for example in examples],
        settings.batch_size,
        settings.seed,
        weights=weights if len(set(weights)) > 1 else None,
    )
    bound = model.bert.config.max_tokens
    collate = joint_collator(tokenizer, bound, exact=not compiles(settings))
    measured = [TrainMetrics(examples)] if evaluate_train else []
    options = {"tokenizer": tokenizer, "collate": collate, "objective": JointObjective(), "sampler": sampler}
    options["callbacks"] = [*measured, *callbacks]
    return Trainer(model, settings, examples, held_out, **options)


def evaluate_joint(
    model: JointIntentNER, rows: Sequence[Example], batch_size: int = 64, max_length: int | None = None
) -> dict[str, float]:
    """Losses and metrics of a model on rows for :func:`joint_examples`, as in :meth:`JointObjective.metrics`.

    Words behind the first ``max_length`` tokens do not count.
    """
    examples = joint_examples(model, rows, max_length)
    collate = joint_collator(model.tokenizer, exact=True)
    sampler = LengthBucketSampler([token_count(example) for example in examples], batch_size, shuffle=False)
    batches = (collate([examples[index] for index in batch.indices]) for batch in sampler.batches())
    return evaluate(model.eval(), JointObjective(), batches)[0]
