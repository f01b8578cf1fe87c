"""``SentenceTransformerMTL``: sentence embeddings and several classifications of each sentence from one encoder.

    model = SentenceTransformerMTL("BAAI/bge-large-en-v1.5")
    model.encode(["A sentence."])                      # (1, 1024)
    model.predict(["Shares rose again."])["topic"]     # after training: see mlx_bert.mtl_training.MTLTrainer

Dimensions: N sentences, B batch, L tokens, H hidden size of the encoder, D output_dim, C classes of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from heads.initialization import INITIALIZER_RANGE, glorot_linear
from heads.multi_task import TaskBranch
from heads.pooling import create_pooling
from mlx_bert.checkpoint import (
    entries_of,
    float_dtype,
    load_strict,
    read_json,
    write_json,
    write_safetensors,
)
from mlx_bert.core import BertCore
from mlx_bert.data.labels import LabelMap
from mlx_bert.encoders.base import EncoderConfig
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.similarity import normalize as unit_length
from mlx_bert.mtl_data import (
    CONFIG_FILE,
    ENCODER_FOLDER,
    MAX_LENGTH,
    MODEL_NAME,
    Classes,
    MTLDataProcessor,
    encoder_folder,
    label_map,
)
from mlx_bert.tokenizer import TOKENIZER, Batch, Tokenizer

POOLINGS = ("mean", "cls")
SHARINGS = ("hard", "soft")
WEIGHTS_FILE = "mtl.safetensors"

__all__ = ["MTLDataProcessor", "SentenceTransformerMTL"]


class SentenceTransformerMTL(nn.Module):
    """One encoder, a projection to sentence embeddings, and a classification head per task on top of them.

    ``embeddings = Projection(Dropout(pool(states)))``; a head is ``Linear(D, D // 2), ReLU, Dropout, Linear(C)``.

    Args:
        model_name: the encoder: folder, hub id, a parsed ``config.json`` (then with new weights), or a ``BertCore``.
        output_dim: D, width of the embeddings; the projection is there even if it equals H.
        topic_classes, sentiment_classes: classes of the two tasks that are there by default: their number (also as a
            list of one number) or their names; None leaves the task out.
        dropout: probability on the pooled vector and inside the heads.
        tasks: {name: classes} in place of the two default tasks.
        pooling: ``"mean"`` over real tokens, or ``"cls"`` (what BGE models were trained with).
        normalize: scale the embeddings of a call to length 1; the heads read them before that.
        task_attention: each task weighs the tokens itself, by an attention pooling of its own, in place of reading the
            sentence embedding.
        sharing: ``"hard"``, one encoder for all tasks; ``"soft"``, one encoder per task, tied in training by the
            squared distance of their weights (Duong et al. 2015). The first task's one makes the embeddings.
        dtype: type of the encoder's weights; None keeps them as stored.

    Attributes:
        bert: the encoder, with the other tasks' encoders as its part ``twins`` when sharing is soft.
        tokenizer: the encoder's; None for a model from a config, until it is set.

    Raises:
        ValueError: an unknown option, a task of fewer than two classes or with a name that cannot be used.
    """

    def __init__(
        self,
        model_name: str | Path | Mapping[str, Any] | EncoderConfig | BertCore = MODEL_NAME,
        output_dim: int = 1024,
        topic_classes: Classes | None = (6,),
        sentiment_classes: Classes | None = (3,),
        dropout: float = 0.1,
        tasks: Mapping[str, Classes] | None = None,
        pooling: str = "mean",
        normalize: bool = False,
        task_attention: bool = False,
        sharing: str = "hard",
        dtype: str | mx.Dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("pooling", pooling, POOLINGS), ("sharing", sharing, SHARINGS)):
            if value not in known:
                raise ValueError(f"[mtl] expected {name} to be one of {', '.join(known)} but got {value!r}.")
        if isinstance(output_dim, bool) or output_dim < 2:
            raise ValueError(f"[mtl] expected output_dim of at least 2 but got {output_dim}. Set output_dim.")
        if tasks is None:
            given = {"topic": topic_classes, "sentiment": sentiment_classes}
            tasks = {task: classes for task, classes in given.items() if classes is not None}
        elif (topic_classes, sentiment_classes) != ((6,), (3,)):
            raise ValueError(
                "[mtl] expected either tasks, or topic_classes and sentiment_classes, but got both. Put all in tasks."
            )
        if not tasks:
            raise ValueError("[mtl] expected at least one task but got none. Give tasks={name: classes}.")
        self.bert, self.tokenizer = _load_encoder(model_name, dtype)
        self.output_dim = output_dim
        self.dropout_prob = dropout
        self.pooling_type = pooling
        self.normalize = normalize
        self.task_attention = task_attention
        self.sharing = sharing
        hidden = self.bert.get_hidden_size()
        self.pooling = create_pooling(pooling, hidden)
        self.dropout = nn.Dropout(dropout)
        self.projection = glorot_linear(hidden, output_dim)
        self.heads: dict[str, TaskBranch] = {}
        self.task_poolings: dict[str, nn.Module] = {}
        if sharing == "soft":
            self.bert.twins = {}  # parts of bert: the trainer then gives them the encoder's learning rate
        self._labels: Mapping[str, LabelMap] = MappingProxyType({})
        for task, classes in tasks.items():
            self.add_task(task, classes)
        self.eval()

    # --- tasks --------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> dict[str, list[str]]:
        """{task: names of its classes, in the order of their ids}."""
        return {task: list(labels.names) for task, labels in self._labels.items()}

    @property
    def label_maps(self) -> Mapping[str, LabelMap]:
        """{task: class names <-> ids}."""
        return self._labels

    def add_task(self, task: str, classes: Classes) -> None:
        """Add a head (and a pooling, and an encoder, where each task has its own) for one more task, to be trained.

        What the other tasks compute stays exactly as it was.

        Args:
            task: its name.
            classes: their number, or their names.

        Raises:
            ValueError: a task of that name, a name that cannot be used, or fewer than two classes.
        """
        if task in self._labels:
            raise ValueError(f"[mtl] the task {task!r} is there already. Choose another name.")
        labels = label_map(task, classes)
        self.heads[task] = TaskBranch(
            self.output_dim, self.output_dim // 2, len(labels), self.dropout_prob, INITIALIZER_RANGE
        )
        if self.task_attention:
            self.task_poolings[task] = create_pooling("attention", self.bert.get_hidden_size())
        if self.sharing == "soft" and self._labels:  # the first task has bert itself
            self.bert.twins[task] = _copy_of(self.bert)
        self._labels = MappingProxyType({**self._labels, task: labels})

    def _chosen(self, tasks: str | Sequence[str] | None) -> list[str]:
        known = list(self._labels)
        chosen = known if tasks is None else [tasks] if isinstance(tasks, str) else list(tasks)
        if unknown := [task for task in chosen if task not in known]:
            raise ValueError(f"[mtl] expected task to be one of {', '.join(known)} but got {unknown[0]!r}.")
        return chosen

    # --- running ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        task: str | None = None,
    ) -> dict[str, mx.array | None]:
        """Embed and classify token ids.

        Args:
            input_ids: integers ``(B, L)``.
            attention_mask: ``(B, L)``, 1 for real tokens; None when nothing is padded.
            token_type_ids: segments ``(B, L)``; None is the same as all zeros.
            task: the only task to run; None for all.

        Returns:
            ``embeddings`` ``(B, D)``, always, and ``{task}_logits`` float32 ``(B, C)`` of every task; None in place of
            the logits of tasks that were not asked for.

        Raises:
            ValueError: an unknown task.
        """
        outputs = self._outputs(Batch(input_ids, attention_mask, token_type_ids), self._chosen(task))
        return {"embeddings": outputs["embeddings"], **{key: outputs.get(key) for key in map(logits_key, self._labels)}}

    def _outputs(self, batch: Batch, tasks: Sequence[str]) -> dict[str, mx.array]:
        """Embeddings and the logits of some tasks, from the encoders that they need."""
        twins = self.bert.twins if self.sharing == "soft" else {}
        cores = {"": self.bert, **{name: twins[name] for name in tasks if name in twins}}
        states = {name: core(*batch, compute_pooling=False).last_hidden_state for name, core in cores.items()}
        return self.from_states(states.pop(""), batch.attention_mask, tasks, states)

    def forward(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        task: str | None = None,
    ) -> dict[str, mx.array | None]:
        """The same as calling the model."""
        return self(input_ids, attention_mask, token_type_ids, task)

    def from_states(
        self,
        states: mx.array,
        attention_mask: mx.array | None = None,
        tasks: Sequence[str] | None = None,
        own_states: Mapping[str, mx.array] = MappingProxyType({}),
    ) -> dict[str, mx.array]:
        """Everything behind the encoder.

        Args:
            states: hidden states ``(B, L, H)`` of ``bert``.
            attention_mask: ``(B, L)`` or None.
            tasks: those to run; None for all.
            own_states: {task: ``(B, L, H)``} of the tasks with an encoder of their own.

        Returns:
            ``embeddings`` ``(B, D)`` and ``{task}_logits`` float32 ``(B, C)``.
        """
        if states.dtype != mx.float32:  # pooling is as exact as what follows it
            dtype = self.projection.weight.dtype
            states, own_states = states.astype(dtype), {task: own.astype(dtype) for task, own in own_states.items()}
        shared = self._project(self.pooling(states, attention_mask))
        outputs = {"embeddings": unit_length(shared) if self.normalize else shared}
        for task in self._chosen(tasks):
            vector = shared
            if task in own_states or self.task_attention:
                pool = self.task_poolings[task] if self.task_attention else self.pooling
                vector = self._project(pool(own_states.get(task, states), attention_mask))
            outputs[logits_key(task)] = self.heads[task](vector).astype(mx.float32)
        return outputs

    def _project(self, pooled: mx.array) -> mx.array:
        return self.projection(self.dropout(pooled))

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int = 8,
        max_length: int = MAX_LENGTH,
        normalize: bool = True,
        progress: Any = None,
    ) -> np.ndarray:
        """Embed sentences.

        Args:
            sentences: any number; or a single one.
            batch_size: a batch holds as many tokens as this many sentences of 128.
            max_length: truncate to this many tokens.
            normalize: scale to length 1.
            progress: a tqdm bar.

        Returns:
            float32 ``(N, D)``, in the order of the sentences; ``(D,)`` for a single one.

        Raises:
            ValueError: no tokenizer, or something that is not text.
        """
        single = isinstance(sentences, str)
        sentences = [sentences] if single else list(sentences)

        def embed(batch: Batch) -> dict[str, mx.array]:
            vectors = self._outputs(batch, [])["embeddings"].astype(mx.float32)
            return {"embeddings": unit_length(vectors) if normalize else vectors}

        found = self._run(sentences, embed, {"embeddings": self.output_dim}, batch_size, max_length, progress)
        return found["embeddings"][0] if single else found["embeddings"]

    def predict(
        self,
        sentences: str | Sequence[str],
        tasks: str | Sequence[str] | None = None,
        batch_size: int = 8,
        max_length: int = MAX_LENGTH,
        progress: Any = None,
    ) -> dict[str, dict[str, Any]]:
        """Classify sentences by several tasks in one pass of the encoder.

        Args:
            sentences: any number; a single string is a list of one.
            tasks: those to predict; None for all.
            batch_size, max_length, progress: as for :meth:`encode`.

        Returns:
            {task: ``probs`` float32 ``(N, C)``, ``predictions`` int ``(N,)``, ``labels`` (their names, a list),
            ``confidence`` float32 ``(N,)``, the probability of the prediction}.

        Raises:
            ValueError: an unknown task, no tokenizer, or something that is not text.
        """
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        chosen = self._chosen(tasks)

        def classify(batch: Batch) -> dict[str, mx.array]:
            outputs = self._outputs(batch, chosen)
            return {task: mx.softmax(outputs[logits_key(task)], axis=-1) for task in chosen}

        widths = {task: len(self._labels[task]) for task in chosen}
        found = self._run(sentences, classify, widths, batch_size, max_length, progress)
        result = {}
        for task, probs in found.items():
            best = probs.argmax(-1)
            names = self._labels[task].names
            result[task] = {
                "probs": probs,
                "predictions": best,
                "labels": [names[index] for index in best],
                "confidence": probs[np.arange(len(probs)), best],
            }
        return result

    def _run(
        self,
        sentences: list[str],
        compute: Callable[[Batch], dict[str, mx.array]],
        widths: Mapping[str, int],
        batch_size: int,
        max_length: int,
        progress: Any,
    ) -> dict[str, np.ndarray]:
        """Rows ``(N, width)`` in the order of the sentences."""
        if self.tokenizer is None:
            raise ValueError("[mtl] expected a tokenizer but the model has none. Set model.tokenizer.")
        mx.eval(self.eval().state)  # batches may run in another thread, which cannot finish this one's work
        found = {name: np.zeros((len(sentences), width), np.float32) for name, width in widths.items()}
        run = {"batch_size": batch_size, "max_length": max_length, "progress": progress, "model": self}
        for places, outputs in run_batches(sentences, self.tokenizer, lambda batch, _: compute(batch), **run):
            for name, rows in outputs.items():
                found[name][places] = np.array(rows)
        return found

    # --- freezing: what the trainer asks for --------------------------------------------------------------------------

    def encoders(self) -> list[BertCore]:
        """``bert`` and, when sharing is soft, the other tasks' encoders."""
        return [self.bert, *(self.bert.twins.values() if self.sharing == "soft" else ())]

    def freeze_bert(self, num_layers: int | None = None) -> None:
        """Freeze the encoders whole, or their embeddings and ``num_layers`` bottom layers and nothing else.

        Raises:
            ValueError: fewer than 0 or more layers than there are.
        """
        if num_layers is None:
            self.bert.freeze()
            return
        if isinstance(num_layers, bool) or not 0 <= num_layers <= self.bert.get_num_layers():
            raise ValueError(f"[mtl] expected num_layers from 0 to {self.bert.get_num_layers()} but got {num_layers}.")
        self.unfreeze_bert()
        for core in self.encoders() if num_layers else ():
            for module in (core.encoder.embeddings, *core.encoder.layers[:num_layers]):
                module.freeze()

    def unfreeze_bert(self) -> None:
        """Let the encoders train, but for quantised layers, which cannot, and for poolers, which nothing reads."""
        self.bert.unfreeze()
        for path, module in self.bert.named_modules():
            if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
                module.freeze(keys=["weight", "scales", "biases"], recurse=False)
            elif path.endswith("encoder.pooler"):
                module.freeze()

    # --- saving and loading -------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, but for the encoder, as JSON values."""
        return {
            "output_dim": self.output_dim,
            "dropout": self.dropout_prob,
            "tasks": self.tasks,
            "pooling": self.pooling_type,
            "normalize": self.normalize,
            "task_attention": self.task_attention,
            "sharing": self.sharing,
        }

    def _own_arrays(self) -> dict[str, mx.array]:
        return {name: array for name, array in tree_flatten(self.parameters()) if not name.startswith("bert.")}

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write one folder: ``bert/`` with the tokenizer, ``mtl.safetensors``, ``mtl_config.json`` with class names.

        Soft sharing adds ``bert_<task>/`` for each further encoder. The folders ``bert*`` load in transformers.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.bert.save_pretrained(folder / ENCODER_FOLDER)
        if tokenizer := tokenizer or self.tokenizer:
            tokenizer.save_pretrained(folder / ENCODER_FOLDER)
        for task, core in (self.bert.twins if self.sharing == "soft" else {}).items():
            core.save_pretrained(folder / f"{ENCODER_FOLDER}_{task}")
        write_safetensors(folder / WEIGHTS_FILE, entries_of(self._own_arrays()))
        write_json(folder / CONFIG_FILE, {"model_type": type(self).__name__, **self.get_config()})

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: str | mx.Dtype | None = None) -> Self:
        """Load what :meth:`save_pretrained` wrote.

        Args:
            folder: that folder.
            dtype: type of the encoders' weights; None keeps them as stored. With any, the others' are float32.

        Raises:
            FileNotFoundError: files are missing.
            ValueError: the folder is of another model, or the weights do not fit.
        """
        folder = Path(folder)
        config = read_json(folder / CONFIG_FILE)
        if config.pop("model_type", None) != cls.__name__:
            raise ValueError(f"[mtl] {folder / CONFIG_FILE} does not describe a {cls.__name__}. Give its folder.")
        try:
            model = cls(folder / ENCODER_FOLDER, dtype=dtype, **config)
        except TypeError as error:
            raise ValueError(f"[mtl] {folder / CONFIG_FILE} cannot be used: {error}. Save the model again.") from None
        for task in model.bert.twins if model.sharing == "soft" else ():
            model.bert.twins[task] = BertCore.from_pretrained(folder / f"{ENCODER_FOLDER}_{task}", dtype)
        weights = mx.load(str(folder / WEIGHTS_FILE), format="safetensors")
        own = nn.Module()
        for part in ("projection", "heads", "task_poolings"):
            setattr(own, part, getattr(model, part))
        load_strict(own, weights, None if float_dtype(dtype) is None else mx.float32, "mtl")
        return model.eval()


def logits_key(task: str) -> str:
    """The name of a task's logits among the outputs."""
    return f"{task}_logits"


def _load_encoder(
    source: str | Path | Mapping[str, Any] | EncoderConfig | BertCore, dtype: str | mx.Dtype | None
) -> tuple[BertCore, Tokenizer | None]:
    if isinstance(source, BertCore):
        core, tokenizer = source, None
    elif isinstance(source, str | Path):
        folder = encoder_folder(source)
        core = BertCore.from_pretrained(folder, dtype, compute_additional_pooling=False)
        return core, Tokenizer.from_pretrained(folder) if (folder / TOKENIZER).is_file() else None
    else:
        core, tokenizer = BertCore(source, compute_additional_pooling=False), None
    if dtype is not None:
        core.set_dtype(float_dtype(dtype))
    return core, tokenizer


def _copy_of(core: BertCore) -> BertCore:
    twin = BertCore(core.stored_config(), compute_additional_pooling=False)
    twin.load_weights_from(core.weights_on_disk())
    return twin
