"""``TaskModel``: an encoder with the head that transformers' class of a task has, saved as a checkpoint of that class.

What it writes loads in transformers (``AutoModelForSequenceClassification``, ``AutoModelForMaskedLM``, ...), in
:class:`mlx_bert.model.BertWithHead`, and as an encoder in :class:`mlx_bert.core.BertCore`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from heads import BaseKaggleHead, HeadConfig, create_head
from mlx_bert.checkpoint import CONFIG, WEIGHTS, entries_of, write_json, write_safetensors
from mlx_bert.core import BertCore
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer


class TaskModel(BertWithHead):
    """An encoder with a head that has an equal in transformers.

    Args:
        bert: the encoder. Its own pooler is dropped: where the task's class has one, it is part of the head.
        head: a head, or the config of one.
        id2label: names of the classes.

    Raises:
        ValueError: transformers has no class with this head.
    """

    def __init__(
        self,
        bert: BertCore,
        head: BaseKaggleHead | HeadConfig | Mapping[str, Any],
        id2label: Mapping[int | str, str] | None = None,
    ) -> None:
        super().__init__(bert, head, id2label=id2label)
        self._extra_config: dict[str, Any] = {}
        self._task_config()
        if "pooler" in bert.encoder:
            bert.encoder.pooler = None

    @classmethod
    def new(cls, bert: BertCore, task: str, num_labels: int | None = None) -> Self:
        """An encoder with a new head, to be trained.

        A pooler that the checkpoint has beside the encoder is taken into the head, as transformers does it.

        Args:
            bert: the encoder.
            task: ``"sequence_classification"``, ``"token_classification"`` or ``"masked_lm"``.
            num_labels: number of classes; 1 for a model that scores. None for ``"masked_lm"``.

        Raises:
            ValueError: transformers has no class for the task over this architecture.
        """
        from convert import task_heads  # which head, and under which names: convert's knowledge

        config, head_config = task_heads.new_task(bert.stored_config(), task, num_labels)
        head = create_head(head_config)
        stored, arrays = bert.weights_on_disk(prefix=True), head.state_arrays()
        for path, name in task_heads.head_paths(config, task).items():
            present = {f"{path}.{kind}": stored.get(f"{name}.{kind}") for kind in ("weight", "bias")}
            arrays |= {key: array for key, array in present.items() if array is not None and key in arrays}
        head.load_state_arrays(arrays)
        return cls(bert, head, config.get("id2label"))

    @classmethod
    def of(cls, model: BertWithHead) -> BertWithHead:
        """The same encoder and head as a task model; the model itself where transformers has no class with the head."""
        try:
            return cls(model.bert, model.head, model.id2label)
        except ValueError:
            return model

    def add_config(self, **keys: Any) -> None:
        """Keys that :meth:`save_pretrained` writes into ``config.json`` beside the others."""
        self._extra_config |= keys

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` of the task's class, and a tokenizer's files."""
        from convert import task_heads

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self._task_config()
        weights = {**self.bert.weights_on_disk(prefix=True), **task_heads.checkpoint_weights(config, self.head)}
        write_safetensors(folder / WEIGHTS, entries_of(weights))
        write_json(folder / CONFIG, config)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def _task_config(self) -> dict[str, Any]:
        """``config.json`` of the task's class."""
        from convert import task_heads

        config = {**self.bert.stored_config(), **self._extra_config}
        if self.id2label is not None:
            config["id2label"] = {str(key): name for key, name in self.id2label.items()}
            config["label2id"] = {name: key for key, name in self.id2label.items()}
        return task_heads.checkpoint_config(config, self.head.config)
