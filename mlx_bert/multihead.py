"""``MultiheadClassifier``: one encoder, one classification head per task, trained together on texts of each task.

    classifier = MultiheadClassifier()
    classifier.train({"sentiment": [{"text": "I love this!", "label": "positive"}, ...], "intent": [...]})
    classifier.predict(["Great product!"], task="sentiment")

Dimensions: B batch, L tokens, D hidden size, K classes of a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from heads import MultiTaskNLPHead, NLPTaskConfig, NLPTaskType
from mlx_bert.checkpoint import (
    entries_of,
    new_folder,
    ready_folder,
    write_json,
    write_safetensors,
)
from mlx_bert.core import BertCore
from mlx_bert.data.collate import IGNORE_INDEX, token_count, tokenize_examples
from mlx_bert.data.labels import LabelMap, class_weights
from mlx_bert.data.readers import Example, read_examples
from mlx_bert.data.splits import split_examples
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.multihead_files import MULTIHEAD_CONFIG, MULTIHEAD_ENCODER, MULTIHEAD_HEADS, read_multihead
from mlx_bert.model import BertWithHead
from mlx_bert.multihead_analysis import analysis_of, display_analysis
from mlx_bert.multihead_config import (
    EncoderConfig,
    EvalConfig,
    HeadConfig,
    LossConfig,
    MultiheadConfig,
    TrainingConfig,
)
from mlx_bert.tokenizer import Batch, Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.multi_task import MultiTaskObjective, TaskBatches
from mlx_bert.training.trainer import Trainer, TrainResult

HEADS_ONLY_FACTOR = 10.0  # while the encoder is frozen, the heads learn this much faster


__all__ = [
    "EncoderConfig",
    "EvalConfig",
    "HeadConfig",
    "LossConfig",
    "MultiheadClassifier",
    "MultiheadConfig",
    "TrainingConfig",
]


class MultiheadClassifier:
    """Classifies texts by several tasks at once, over one shared encoder.

    Args:
        config: the settings; a mapping of them; None for the defaults.
    """

    def __init__(self, config: MultiheadConfig | Mapping[str, Any] | None = None) -> None:
        config = {} if config is None else config.to_dict() if isinstance(config, MultiheadConfig) else config
        self.config = MultiheadConfig.from_dict(config)  # a copy: what the caller has stays as it is
        self.is_trained = False
        self.model: BertWithHead | None = None
        self.tokenizer: Tokenizer | None = None
        self._labels: dict[str, LabelMap] = {}
        self._weights: dict[str, list[float]] = {}
        self._splits: dict[str, list[Example]] = {}

    @classmethod
    def new(
        cls,
        config: MultiheadConfig | Mapping[str, Any],
        labels: Mapping[str, LabelMap],
        class_weights: Mapping[str, Sequence[float]],
    ) -> Self:
        """A classifier with new heads, for a training loop of one's own; see ``mlx_bert.training.multi_task``.

        Args:
            config: the settings; ``training.model_name`` is the encoder.
            labels: the labels of each task.
            class_weights: {task: weight of each label}, which count if ``loss.use_class_weights`` is set.
        """
        classifier = cls(config)
        settings = classifier.config.training
        mx.random.seed(settings.seed)
        folder = ready_folder(settings.model_name)
        classifier.tokenizer = Tokenizer.from_pretrained(folder)
        classifier._labels = dict(labels)
        classifier._weights = {task: list(weights) for task, weights in class_weights.items()}
        core = BertCore.from_pretrained(folder)
        classifier.model = BertWithHead(core, classifier._build_head(core.get_hidden_size()))
        return classifier

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return list(self._labels)

    def get_labels(self, task: str) -> list[str]:
        """The labels of a task, in the order of their ids."""
        return list(self._label_map(task).names)

    # --- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        data: Mapping[str, Sequence[Mapping[str, Any]]],
        progress: bool = True,
        validation: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> TrainResult:
        """Train all heads together: first the heads alone, then with the top layers of the encoder.

        Args:
            data: {task: [{"text": ..., "label": ...}, ...]}; each task may have texts of its own.
            progress: show progress bars.
            validation: the same, to choose the best weights by; then ``val_size`` does not count.
            callbacks: told of every update and evaluation; see ``mlx_bert.training.callbacks``.

        Returns:
            What the run came to; the best weights are in the model.

        Raises:
            ValueError: no data, bad rows, a task of a single class, weights for a task that is not there, or tasks or
                labels in ``validation`` that ``data`` lacks.
        """
        examples = _read(data)
        held_out = None if validation is None else _read(validation)
        tasks = list(data)
        if unknown := sorted(set(self.config.loss.task_weights) - set(tasks)):
            raise ValueError(f"[multihead] loss.task_weights names {unknown}, but the tasks are {', '.join(tasks)}.")
        self._labels = {
            task: LabelMap.from_labels(example["label"] for example in examples if example["task"] == task)
            for task in tasks
        }
        for example in held_out or ():
            self._id(example)
        self._split(examples, held_out)
        settings = self.config.training
        mx.random.seed(settings.seed)
        folder = ready_folder(settings.model_name)
        self.tokenizer = Tokenizer.from_pretrained(folder)
        self._weights = {task: self._class_weights(task) for task in tasks}
        core = BertCore.from_pretrained(folder)
        self.model = BertWithHead(core, self._build_head(core.get_hidden_size()))
        result = self._run(self._splits["train"], self._splits["validation"], self._freeze(), progress, callbacks)
        self.is_trained = True
        return result

    def add_task(self, task: str, rows: Sequence[Mapping[str, Any]], progress: bool = True) -> TrainResult:
        """Train a head for one more task on the encoder as it is; the other tasks stay exactly what they were.

        Args:
            task: its name.
            rows: [{"text": ..., "label": ...}, ...].
            progress: show progress bars.

        Raises:
            RuntimeError: not trained yet.
            ValueError: the task is there already, or bad rows.
        """
        self._require_trained("add_task")
        if task in self._labels:
            raise ValueError(f"[multihead] the task {task!r} is there already. Choose another name.")
        examples = _read({task: rows})
        before = self.model.head.state_arrays()
        old_splits = self._splits
        self._labels[task] = LabelMap.from_labels(example["label"] for example in examples)
        self._split(examples)
        self._weights[task] = self._class_weights(task)
        mx.random.seed(self.config.training.seed)
        head = self._build_head(self.model.bert.get_hidden_size())
        head.load_state_arrays({**head.state_arrays(), **before})
        for name, module in head.task_heads.items():
            if name != task:
                module.freeze()
        self.model = BertWithHead(self.model.bert, head)
        result = self._run(self._splits["train"], self._splits["validation"], "backbone", progress)
        head.unfreeze()
        self._splits = {name: old_splits.get(name, []) + self._splits[name] for name in self._splits}
        return result

    def _split(self, examples: Sequence[Example], held_out: list[Example] | None = None) -> None:
        settings = self.config.training
        parts = split_examples(
            [example["label"] for example in examples],
            settings.val_size if held_out is None else 0.0,
            settings.test_size,
            [example["task"] for example in examples],
            settings.seed,
        )
        self._splits = {name: [examples[index] for index in indices] for name, indices in parts._asdict().items()}
        if held_out is not None:
            self._splits["validation"] = held_out

    def _class_weights(self, task: str) -> list[float]:
        counts = Counter(example["label"] for example in self._splits["train"] if example["task"] == task)
        return class_weights([counts[name] for name in self._labels[task].names])

    def _build_head(self, hidden_size: int) -> MultiTaskNLPHead:
        head, loss = self.config.head, self.config.loss
        tasks = [
            NLPTaskConfig(
                task,
                NLPTaskType.TEXT_CLASSIFICATION,
                num_classes=len(labels),
                loss_weight=loss.task_weights.get(task, 1.0),
                label_smoothing=loss.label_smoothing,
            )
            for task, labels in self._labels.items()
        ]
        width = int(hidden_size * head.hidden_multiplier)
        focal = {"loss": "focal", "focal_gamma": loss.focal_gamma} if loss.use_focal_loss else {}
        weights = {task: {"class_weights": values} for task, values in self._weights.items()}
        return MultiTaskNLPHead(
            tasks,
            hidden_size,
            head_kwargs=weights if loss.use_class_weights else None,
            pooling_type=self.config.pooling,
            hidden_sizes=[width] * head.hidden_layers,
            activation=head.activation,
            dropout_rate=head.dropout,
            use_layer_norm=False,
            use_input_norm=False,
            **focal,
        )

    def _freeze(self) -> str:
        layers, top = self.model.bert.get_num_layers(), self.config.encoder.unfreeze_layers
        if top is None:
            return "none"
        if top == 0:
            return "backbone"
        return str(layers - top) if top < layers else "embeddings"

    def _run(
        self,
        train: list[Example],
        validation: list[Example],
        freeze: str,
        progress: bool,
        callbacks: Sequence[Callback] = (),
    ) -> TrainResult:
        settings, encoder, evaluation = self.config.training, self.config.encoder, self.config.eval
        train = tokenize_examples(train, self.tokenizer, settings.max_length)
        tasks = list(dict.fromkeys(example["task"] for example in train))
        train = [{**example, "labels": {example["task"]: self._id(example)}} for example in train]
        # In evaluation, every example has a label of every task, so that batches may mix tasks.
        held_out = [
            {
                **example,
                "labels": {task: self._id(example) if task == example["task"] else IGNORE_INDEX for task in tasks},
            }
            for example in validation
        ]
        heads_only = freeze == "backbone"  # then both phases are one
        freeze_epochs = 0 if heads_only else encoder.freeze_epochs
        heads_only_rate = HEADS_ONLY_FACTOR * settings.learning_rate
        args = TrainingArgs(
            output_dir=str(_next_run(Path(settings.output_dir))),
            epochs=settings.epochs + (encoder.freeze_epochs if heads_only else 0),
            batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            learning_rate=settings.learning_rate * encoder.lr_multiplier,
            head_learning_rate=heads_only_rate if heads_only else settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_ratio=settings.warmup_ratio,
            max_grad_norm=settings.max_grad_norm,
            freeze=freeze,
            freeze_epochs=freeze_epochs,
            freeze_learning_rate=heads_only_rate if freeze_epochs else None,
            max_length=settings.max_length,
            metric=evaluation.metric if held_out else None,
            patience=max(0, evaluation.patience) if held_out else 0,
            min_delta=evaluation.min_delta,
            save_every="no",
            seed=settings.seed,
            progress=progress,
        )
        lengths = [token_count(example) for example in train]
        sampler = TaskBatches(
            [example["task"] for example in train],
            lengths,
            settings.batch_size,
            self.config.task_sampling,
            settings.seed,
        )
        trainer = Trainer(
            self.model,
            args,
            train,
            held_out or None,
            tokenizer=self.tokenizer,
            objective=MultiTaskObjective(),
            callbacks=callbacks,
            sampler=sampler,
        )
        result = trainer.train()
        self.model.unfreeze_bert()
        return result

    def _id(self, example: Example) -> int:
        return self._label_map(example["task"]).index(example["label"])

    # --- prediction ---------------------------------------------------------------------------------------------------

    def predict(
        self, texts: str | Sequence[str], task: str, return_all_scores: bool = False, show_progress_bar: bool = False
    ) -> list[dict[str, Any]]:
        """Classify texts by one task.

        Args:
            texts: texts, or a single one.
            task: the task.
            return_all_scores: add ``"scores"``, the probability of every label.
            show_progress_bar: show a progress bar.

        Returns:
            ``{"label", "confidence"}`` for each text, in order; the confidence is the label's probability.

        Raises:
            RuntimeError: not trained yet.
            ValueError: an unknown task.
        """
        self._require_trained("predict")
        self._label_map(task)
        return self._predict(texts, [task], return_all_scores, show_progress_bar)[task]

    def predict_all_tasks(
        self, texts: str | Sequence[str], return_all_scores: bool = False, show_progress_bar: bool = False
    ) -> dict[str, list[dict[str, Any]]]:
        """Classify texts by every task, in one pass of the encoder: {task: predictions as of :meth:`predict`}."""
        self._require_trained("predict_all_tasks")
        return self._predict(texts, self.tasks, return_all_scores, show_progress_bar)

    def _predict(
        self, texts: str | Sequence[str], tasks: Sequence[str], all_scores: bool, show_progress_bar: bool
    ) -> dict[str, list[dict[str, Any]]]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        model = self.model.eval()

        def forward(batch: Batch, _: Any) -> dict[str, mx.array]:
            states = model.bert(*batch, compute_pooling=False).last_hidden_state
            return {task: model.head(states, batch.attention_mask, task_name=task)["probabilities"] for task in tasks}

        found = {task: np.zeros((len(texts), len(self._labels[task])), np.float32) for task in tasks}
        with tqdm(total=len(texts), unit="text", desc="predict", disable=not show_progress_bar) as bar:
            settings = {"max_length": self.config.training.max_length, "progress": bar}
            for indices, outputs in run_batches(texts, self.tokenizer, forward, **settings):
                for task, probabilities in outputs.items():
                    found[task][indices] = np.array(probabilities)
        return {task: [self._prediction(task, row, all_scores) for row in found[task]] for task in tasks}

    def _prediction(self, task: str, row: np.ndarray, all_scores: bool) -> dict[str, Any]:
        names, best = self._labels[task].names, int(row.argmax())
        prediction: dict[str, Any] = {"label": names[best], "confidence": float(row[best])}
        if all_scores:
            prediction["scores"] = {name: float(score) for name, score in zip(names, row, strict=True)}
        return prediction

    # --- analysis -----------------------------------------------------------------------------------------------------

    def analyze(
        self,
        split: str = "test",
        tasks: Sequence[str] | None = None,
        data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Where the model is right and wrong on a part of its own data, or on other data.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            tasks: the tasks to look at; None for all.
            data: rows as for :meth:`train` to look at, in place of a part.

        Returns:
            {task: what :func:`~mlx_bert.multihead_analysis.analysis_of` says}.

        Raises:
            RuntimeError: not trained, or loaded from a folder: the data are not saved.
            ValueError: an unknown part or task.
        """
        self._require_trained("analyze")
        if data is not None:
            examples = _read(data)
            return {task: self._analyze(task, examples) for task in (data if tasks is None else tasks)}
        if not self._splits:
            raise RuntimeError("[multihead] analyze needs the data of the training, which a loaded model lacks.")
        if split not in self._splits:
            raise ValueError(f"[multihead] expected split to be one of {', '.join(self._splits)} but got {split!r}.")
        return {task: self._analyze(task, self._splits[split]) for task in (self.tasks if tasks is None else tasks)}

    def _analyze(self, task: str, examples: Sequence[Example]) -> dict[str, Any]:
        names = list(self._label_map(task).names)
        examples = [example for example in examples if example["task"] == task]
        if not examples:
            raise ValueError(f"[multihead] this part of the data has no examples of the task {task!r}.")
        return analysis_of(names, examples, self.predict([example["text"] for example in examples], task))

    @staticmethod
    def display(result: Mapping[str, Mapping[str, Any]], max_errors: int = 10) -> None:
        """Print what :meth:`analyze` found: a table per task, the commonest confusions, the most confident errors."""
        display_analysis(result, max_errors)

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path | None = None) -> Path:
        """Write ``encoder/``, ``task_heads.safetensors`` and ``multihead_config.json``; an earlier model is replaced.

        Args:
            path: the folder; ``config.training.save_path`` by default.

        Raises:
            RuntimeError: not trained yet.
            FileExistsError: the folder holds something else.
        """
        self._require_trained("save")
        path = Path(self.config.training.save_path if path is None else path)
        if path.exists() and any(path.iterdir()) and not (path / MULTIHEAD_CONFIG).is_file():
            raise FileExistsError(f"[multihead] {path} exists and is no multihead model. Choose another folder.")
        with new_folder(path, overwrite=True) as folder:
            self.model.bert.save_pretrained(folder / MULTIHEAD_ENCODER)
            self.tokenizer.save_pretrained(folder / MULTIHEAD_ENCODER)
            write_safetensors(folder / MULTIHEAD_HEADS, entries_of(self.model.head.state_arrays()))
            saved = {
                "config": self.config.to_dict(),
                "head": self.model.head.get_config(),
                "labels": {task: labels.to_dict() for task, labels in self._labels.items()},
                "class_weights": self._weights,
            }
            write_json(folder / MULTIHEAD_CONFIG, saved)
        return path

    def load(self, path: str | Path | None = None) -> Self:
        """Take everything from a folder of :meth:`save`: settings, labels, weights.

        Raises:
            FileNotFoundError: no such model.
            ValueError: damaged files.
        """
        path = Path(self.config.training.save_path if path is None else path)
        model, tokenizer, saved = read_multihead(path)
        config = MultiheadConfig.from_dict(saved["config"])
        self._labels = {task: LabelMap.from_dict(labels) for task, labels in saved["labels"].items()}
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._weights = saved["class_weights"]
        self._splits = {}
        self.is_trained = True
        return self

    def _label_map(self, task: str) -> LabelMap:
        if task not in self._labels:
            raise ValueError(f"[multihead] expected task to be one of {', '.join(self.tasks)} but got {task!r}.")
        return self._labels[task]

    def _require_trained(self, what: str) -> None:
        if not self.is_trained:
            raise RuntimeError(f"[multihead] {what} needs a trained model. Call train or load first.")


def _read(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Example]:
    """Check the rows of all tasks; the result has ``text``, ``label`` (a string) and ``task``."""
    if not data:
        raise ValueError("No training data provided. Give {task: [{'text': ..., 'label': ...}, ...]}.")
    examples = []
    for task, rows in data.items():
        try:
            named = [{**row, "label": str(row["label"])} if row.get("label") is not None else row for row in rows]
            read = read_examples(named)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"[multihead] the data of the task {task!r} cannot be used: {error}") from None
        if len({example["label"] for example in read}) < 2:
            raise ValueError(f"[multihead] the task {task!r} has a single label. There is nothing to tell apart.")
        examples += [{**example, "task": task} for example in read]
    return examples


def _next_run(folder: Path) -> Path:
    """``run-1``, ``run-2``, ...: the first that is not there."""
    number = 1
    while (folder / f"run-{number}").exists():
        number += 1
    return folder / f"run-{number}"
