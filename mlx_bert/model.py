"""``BertWithHead``: the only place where an encoder and a head meet.

Dimensions: B batch, N choices or items, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from heads import BaseKaggleHead, HeadConfig, create_head, get_head_registry
from mlx_bert.checkpoint import (
    CONFIG,
    WEIGHTS,
    FromPretrained,
    dequantize,
    entries_of,
    float_dtype,
    read_json,
    read_weights,
    ready_folder,
    write_json,
    write_safetensors,
)
from mlx_bert.core import BertCore
from mlx_bert.tokenizer import Tokenizer

METADATA = "model_metadata.json"
ENCODER_FOLDER = "bert"
HEAD_FOLDER = "head"


class BertWithHead(FromPretrained, nn.Module):
    """An encoder with a task head.

    Args:
        bert: the encoder.
        head: a head, or the config of one; its ``input_size`` must be the encoder's hidden size.
        freeze_bert: train the head alone.
        freeze_bert_layers: freeze the embeddings and this many bottom layers; ``freeze_bert`` wins if both are given.
        id2label: names of the classes, saved with the model.

    Raises:
        ValueError: the head does not fit the encoder.
    """

    def __init__(
        self,
        bert: BertCore,
        head: BaseKaggleHead | HeadConfig | Mapping[str, Any],
        freeze_bert: bool = False,
        freeze_bert_layers: int | None = None,
        id2label: Mapping[int | str, str] | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.bert = bert
        self.head = head if isinstance(head, BaseKaggleHead) else create_head(head)
        if self.head.config.input_size != bert.get_hidden_size():
            raise ValueError(
                f"[BertWithHead] expected a head with input_size {bert.get_hidden_size()}, the encoder's hidden size, "
                f"but got {self.head.config.input_size}. Set input_size in the head's config."
            )
        self.set_labels(id2label)
        if freeze_bert:
            self.freeze_bert()
        elif freeze_bert_layers is not None:
            self.freeze_bert(freeze_bert_layers)

    def set_labels(self, id2label: Mapping[int | str, str] | Sequence[str] | None) -> None:
        """Name the classes: by ids, which may be strings as JSON spells them, or in their order."""
        if isinstance(id2label, (list, tuple)):
            id2label = dict(enumerate(id2label))
        self._id2label = None if id2label is None else {int(key): str(name) for key, name in id2label.items()}

    @property
    def id2label(self) -> dict[int, str] | None:
        """Class id -> name, or None."""
        return self._id2label

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        position_ids: mx.array | None = None,
        labels: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **head_inputs: Any,
    ) -> dict[str, Any] | tuple[mx.array | None, mx.array]:
        """Run encoder and head.

        Args:
            input_ids: integers ``(B, L)``, or ``(B, N, L)`` for multiple choice and lists of items.
            attention_mask, token_type_ids, position_ids: of the same shape, or None.
            labels: what the head's loss takes; None for no loss.
            output_attentions, output_hidden_states: also return the encoder's.
            return_dict: False gives ``(loss, logits)``, with the predictions for a head without logits.
            head_inputs: what the head's ``forward`` takes besides; a tied language model gets the word embeddings.

        Returns:
            All outputs of the head, and ``loss`` (a scalar or None), ``logits``, ``predictions``, ``probabilities``
            (None where the head has none), ``head_outputs``, ``bert_outputs``; on request ``hidden_states`` and
            ``attentions``.
        """
        flat = [_flatten(array) for array in (input_ids, attention_mask, token_type_ids, position_ids)]
        encoded = self.bert(*flat, output_attentions, output_hidden_states, compute_pooling=False)
        states = encoded.last_hidden_state
        if input_ids.ndim == 3:
            states = states.reshape(*input_ids.shape, states.shape[-1])
        outputs = self.apply_head(states, attention_mask, **head_inputs)
        loss = None if labels is None else self.head.compute_loss(outputs, labels)
        if not return_dict:
            return loss, outputs["logits"] if "logits" in outputs else outputs["predictions"]
        result = {"logits": None, "predictions": None, "probabilities": None, **outputs}
        result |= {"loss": loss, "head_outputs": outputs, "bert_outputs": encoded}
        if output_hidden_states:
            result["hidden_states"] = encoded.hidden_states
        if output_attentions:
            result["attentions"] = encoded.attentions
        return result

    def apply_head(
        self, hidden_states: mx.array, attention_mask: mx.array | None = None, **head_inputs: Any
    ) -> dict[str, Any]:
        """The head's outputs for the encoder's ``hidden_states`` ``(B, L, D)`` or ``(B, N, L, D)``."""
        if getattr(self.head, "needs_embeddings", False):
            head_inputs = {"embeddings": _word_embeddings(self.bert), **head_inputs}
        if hidden_states.dtype != mx.float32:  # a head in float32 pools, normalises and scores in float32
            hidden_states = hidden_states.astype(_dtype_of(self.head))
        return self.head(hidden_states, attention_mask, **head_inputs)

    def get_bert(self) -> BertCore:
        """The encoder."""
        return self.bert

    def get_head(self) -> BaseKaggleHead:
        """The head."""
        return self.head

    def compute_loss(self, predictions: Mapping[str, Any], labels: Any) -> mx.array:
        """The head's loss of the outputs of a call; a scalar."""
        return self.head.compute_loss(predictions.get("head_outputs", predictions), labels)

    def compute_metrics(self, predictions: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """The head's metrics of the outputs of a call."""
        return self.head.compute_metrics(predictions.get("head_outputs", predictions), labels)

    # --- freezing -----------------------------------------------------------------------------------------------------

    def freeze_bert(self, num_layers: int | None = None) -> None:
        """Freeze the whole encoder, or its embeddings and ``num_layers`` bottom layers and nothing else.

        Raises:
            ValueError: fewer than 0 or more layers than there are.
        """
        layers = self.bert.encoder.layers
        if num_layers is None:
            self.bert.freeze()
            return
        if isinstance(num_layers, bool) or not 0 <= num_layers <= len(layers):
            raise ValueError(f"[BertWithHead] expected num_layers from 0 to {len(layers)} but got {num_layers}.")
        self.unfreeze_bert()
        if num_layers > 0:
            for module in (self.bert.encoder.embeddings, *layers[:num_layers]):
                module.freeze()

    def unfreeze_bert(self) -> None:
        """Let the whole encoder train, but for quantised layers, which cannot."""
        self.bert.unfreeze()
        for _, module in self.bert.named_modules():
            if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
                module.freeze(keys=["weight", "scales", "biases"], recurse=False)

    # --- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write ``bert/``, ``head/`` and ``model_metadata.json``, and a tokenizer's files into ``bert/``."""
        folder = Path(folder)
        self.bert.save_pretrained(folder / ENCODER_FOLDER)
        (folder / HEAD_FOLDER).mkdir(exist_ok=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / ENCODER_FOLDER)
        write_safetensors(folder / HEAD_FOLDER / WEIGHTS, entries_of(self.head.state_arrays()))
        write_json(folder / HEAD_FOLDER / CONFIG, self.head.get_config())
        metadata = {
            "model_type": "BertWithHead",
            "bert_type": type(self.bert).__name__,
            "head_type": get_head_registry().get_name(self.head),
            "head_class_name": type(self.head).__name__,
            "head_config_type": str(self.head.config.head_type),
        }
        if self._id2label is not None:
            metadata["id2label"] = {str(key): name for key, name in self._id2label.items()}
        write_json(folder / METADATA, metadata)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        freeze_bert: bool = False,
        freeze_bert_layers: int | None = None,
    ) -> Self:
        """Load a folder of :meth:`save_pretrained`, or a checkpoint of a Hugging Face task model (folder or hub id).

        Args:
            source: for example a fine-tuned folder, or a converted ``BertForSequenceClassification``.
            dtype: type of the encoder's weights; None keeps them as stored. With any, the head's are float32: pooling,
                normalisation and logits lose nothing then.
            revision: branch, tag or commit of a hub id.
            freeze_bert, freeze_bert_layers: as in the constructor.

        Raises:
            FileNotFoundError: no such folder, or files are missing.
            ValueError: an unknown head, or weights that do not fit.
        """
        if (Path(source) / METADATA).is_file():
            model = cls._from_saved(Path(source), dtype)
        else:
            model = cls._from_task_checkpoint(ready_folder(source, revision), dtype)
        if freeze_bert:
            model.freeze_bert()
        elif freeze_bert_layers is not None:
            model.freeze_bert(freeze_bert_layers)
        mx.eval(model.state)  # also what is no weight: another thread cannot evaluate it
        return model.eval()

    @classmethod
    def _from_saved(cls, folder: Path, dtype: str | mx.Dtype | None) -> Self:
        metadata = read_json(folder / METADATA)
        head_class = get_head_registry().get_head_class(metadata.get("head_type"))
        head = head_class.from_config(read_json(folder / HEAD_FOLDER / CONFIG))
        bert = BertCore.from_pretrained(folder / ENCODER_FOLDER, dtype)
        _load_head(head, read_weights(folder / HEAD_FOLDER), dtype)
        return cls(bert, head, id2label=metadata.get("id2label"))

    @classmethod
    def _from_task_checkpoint(cls, folder: Path, dtype: str | mx.Dtype | None) -> Self:
        from convert import task_heads  # the one way up: Hugging Face's head names are convert's knowledge

        config = read_json(folder / CONFIG)
        if activation := _cross_encoder_activation(folder):
            config["sentence_transformers"] = {"activation_fn": activation}
        weights = read_weights(folder)
        bert = BertCore(config)
        own, others = bert.names.split(weights)
        head_config = task_heads.head_from_checkpoint(config, weights.keys())
        if head_config is None:
            raise ValueError(
                f"[BertWithHead] {folder} has no task head that is known here (its other tensors: "
                f"{', '.join(others[:5]) or 'none'}). Load it with BertCore, or attach a new head with "
                "create_bert_with_head."
            )
        head = create_head(head_config)
        if config.get("quantization"):
            for_head = [*others, *(stored for name, stored in own.items() if name.startswith("pooler."))]
            floating = {**weights, **dequantize(weights, for_head, config["quantization"])}
        else:
            floating = weights
        _load_head(head, task_heads.head_weights(config, floating), dtype)
        bert.load_weights_from({name: weights.pop(stored) for name, stored in own.items()}, dtype)
        return cls(bert, head, id2label=config.get("id2label"))


def _cross_encoder_activation(folder: Path) -> str | None:
    """What newer folders of sentence-transformers say beside ``config.json``, where older ones and ours say it."""
    path = folder / "config_sentence_transformers.json"
    return read_json(path).get("activation_fn") if path.is_file() else None


def _flatten(array: mx.array | None) -> mx.array | None:
    """``(B, N, L)`` -> ``(B * N, L)``, which is what encoders take."""
    return array.reshape(-1, array.shape[-1]) if array is not None and array.ndim == 3 else array


def _dtype_of(head: BaseKaggleHead) -> mx.Dtype:
    types = (array.dtype for _, array in tree_flatten(head.parameters()))
    return next((dtype for dtype in types if mx.issubdtype(dtype, mx.floating)), mx.float32)


def _word_embeddings(bert: BertCore) -> nn.Module:
    """The encoder's table ``(V, D)``, which the decoder of a tied language model is too."""
    embeddings = bert.encoder.embeddings
    return embeddings.word if "word" in embeddings else embeddings.tokens


def _load_head(head: BaseKaggleHead, weights: dict[str, mx.array], dtype: str | mx.Dtype | None) -> None:
    if float_dtype(dtype) is not None:
        floating = {name for name, array in weights.items() if mx.issubdtype(array.dtype, mx.floating)}
        weights = {name: array.astype(mx.float32) if name in floating else array for name, array in weights.items()}
    head.load_state_arrays(weights)
    mx.eval(head.state_arrays())
