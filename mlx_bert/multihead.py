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

from mlx_bert.checkpoint import FromPretrained, new_folder, ready_folder
from mlx_bert.core import BertCore
from mlx_bert.data.labels import LabelMap, class_weights
from mlx_bert.data.readers import Example
from mlx_bert.data.sources import Source
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.multihead_files import MULTIHEAD_CONFIG, read_multihead, write_multihead
from mlx_bert.model import BertWithHead
from mlx_bert.multihead_analysis import analysis_of, display_analysis, display_report
from mlx_bert.multihead_config import (
    EncoderConfig,
    EvalConfig,
    HeadConfig,
    LossConfig,
    MultiheadConfig,
    TrainingConfig,
)
from mlx_bert.multihead_data import (
    Splits,
    data_digest,
    label_maps,
    label_of,
    labels_of,
    read_task_data,
    split_tasks,
    task_files,
)
from mlx_bert.multihead_training import (
    TaskHeads,
    added_digest,
    build_head,
    describe_run,
    find_run,
    freeze_of,
    next_run,
    train_heads,
    training_args,
)
from mlx_bert.tokenizer import Batch, Tokenizer
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.distributed import World
from mlx_bert.training.trainer import TrainResult

__all__ = [
    "EncoderConfig",
    "EvalConfig",
    "HeadConfig",
    "LossConfig",
    "MultiheadClassifier",
    "MultiheadConfig",
    "TrainingConfig",
]


class MultiheadClassifier(FromPretrained):
    """Classifies texts by several tasks at once, over one shared encoder.

    Args:
        config: the settings; a mapping of them; None for the defaults.
    """

    def __init__(self, config: MultiheadConfig | Mapping[str, Any] | None = None) -> None:
        config = config if isinstance(config, MultiheadConfig) else MultiheadConfig.from_dict(config or {})
        self.config = MultiheadConfig.from_dict(config.to_dict())  # a copy: what the caller has stays as it is
        self.is_trained = False
        self.model: BertWithHead | None = None
        self.tokenizer: Tokenizer | None = None
        self._labels: dict[str, LabelMap] = {}
        self._weights: dict[str, list[float]] = {}
        self._splits: Splits = {}

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
        classifier._labels = dict(labels)
        classifier._weights = {task: list(weights) for task, weights in class_weights.items()}
        classifier.model, classifier.tokenizer = _new_model(classifier.config, labels, classifier._weights)
        return classifier

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return list(self._labels)

    def get_labels(self, task: str) -> list[str]:
        """The labels of a task, in the order of their ids."""
        return list(labels_of(self._labels, task).names)

    # --- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        data: Mapping[str, Source | Mapping[str, Any]] | None = None,
        progress: bool = True,
        validation: Mapping[str, Source | Mapping[str, Any]] | None = None,
        callbacks: Sequence[Callback] = (),
        data_save_dir: str | Path | None = None,
        resume: bool = False,
    ) -> TrainResult:
        """Train all heads together: first the heads alone, then with the top layers of the encoder.

        With validation data the weights of the best epoch stay; where the heads alone train, each head's own best one.
        Each run gets a numbered folder in ``training.output_dir``; its ``best_model`` (``final_model`` without
        validation data) is what :meth:`load` takes.

        Args:
            data: {task: [{"text": ..., "label": ...}, ...]}; each task may have texts of its own. In place of rows
                also a file of them, or what an augmenter reports of it: {"path": file, "stats": ...}.
            progress: show progress bars, and at the end how each task does on the data that were set aside.
            validation: the same, to choose the best weights by; then ``val_size`` does not count.
            callbacks: told of every update and evaluation; see ``mlx_bert.training.callbacks``.
            data_save_dir: in place of ``data``, a folder with a file for each task: ``{task}.json``, ``.jsonl``,
                ``.csv``, ``.tsv`` or ``.parquet``.
            resume: continue the newest run of the same data from its last checkpoint, exactly; begin anew if there is
                none.

        Returns:
            What the run came to; the best weights are in the model.

        Raises:
            FileNotFoundError: no such file or folder.
            FileExistsError: the run to resume is complete.
            ValueError: no data, bad rows, a task of a single class, weights for a task that is not there, tasks or
                labels in ``validation`` that ``data`` lacks, or a run to resume that had other settings.
            TrainingInterrupted: Ctrl-C or SIGTERM came; a checkpoint was written first.
        """
        if data is not None and data_save_dir is not None:
            raise ValueError("[multihead] expected either data or data_save_dir but got both. Leave one out.")
        examples = read_task_data(task_files(data_save_dir) if data_save_dir is not None else data)
        held_out = None if validation is None else read_task_data(validation)
        labels = label_maps(examples)
        by_task = {
            "loss.task_weights": self.config.loss.task_weights,
            "training.task_weight_decay": self.config.training.task_weight_decay,
        }
        for name, values in by_task.items():
            if unknown := sorted(set(values) - set(labels)):
                raise ValueError(f"[multihead] {name} names {unknown}, but the tasks are {', '.join(labels)}.")
        for example in held_out or ():
            label_of(labels, example)
        splits = self._split(examples, held_out)
        runs, digest = Path(self.config.training.output_dir), data_digest(examples, held_out)
        run = (find_run(runs, digest, self.config) if resume else None) or next_run(runs)
        weights = {task: _class_weights(names, task, splits["train"]) for task, names in labels.items()}
        model, tokenizer = _new_model(self.config, labels, weights)
        freeze = freeze_of(self.config.encoder.unfreeze_layers, model.bert.get_num_layers())
        args = training_args(self.config, freeze, bool(splits["validation"]), run, progress)
        describe_run(run, digest, self.config)
        self.model, self.tokenizer, self.is_trained = model, tokenizer, False
        self._labels, self._weights, self._splits = labels, weights, splits
        saved_whole = TaskHeads(model.bert, model.head, self.write)
        result = train_heads(saved_whole, tokenizer, self.config, labels, splits, args, callbacks, resume)
        self.is_trained = True
        if progress and World().is_main:
            self._report()
        return result

    def _report(self) -> None:
        """Print how each task does on validation and test data, as far as there are any."""
        parts = {}
        for name in ("validation", "test"):
            tasks = {example["task"] for example in self._splits[name]}
            if tasks:
                parts[name] = self.analyze(name, [task for task in self.tasks if task in tasks])
        display_report(parts)

    def add_task(
        self,
        task: str,
        rows: Source,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
        resume: bool = False,
    ) -> TrainResult:
        """Train a head for one more task on the encoder as it is; the other tasks stay exactly what they were.

        If that fails, the classifier is as before.

        Args:
            task: its name.
            rows: [{"text": ..., "label": ...}, ...], or a file of them.
            progress: show progress bars.
            callbacks: told of every update and evaluation; see ``mlx_bert.training.callbacks``.
            resume: continue the newest run that added this task, with the same rows, to a classifier of these very
                weights, from its last checkpoint, exactly; begin anew if there is none.

        Returns:
            What the run came to.

        Raises:
            RuntimeError: not trained yet.
            FileExistsError: the run to resume is complete.
            ValueError: the task is there already, bad rows, or a run to resume that had other settings.
            TrainingInterrupted: Ctrl-C or SIGTERM came; a checkpoint was written first.
        """
        self._require_trained("add_task")
        if task in self._labels:
            raise ValueError(f"[multihead] the task {task!r} is there already. Choose another name.")
        examples = read_task_data({task: rows})
        splits = self._split(examples)
        labels = {**self._labels, **label_maps(examples)}
        weights = {**self._weights, task: _class_weights(labels[task], task, splits["train"])}
        mx.random.seed(self.config.training.seed)
        head = build_head(self.config, labels, weights, self.model.bert.get_hidden_size())
        head.load_state_arrays({**head.state_arrays(), **self.model.head.state_arrays()})
        for name, module in head.task_heads.items():
            if name != task:
                module.freeze()
        runs, digest = Path(self.config.training.output_dir), added_digest(examples, self.model)
        run = (find_run(runs, digest, self.config) if resume else None) or next_run(runs)
        args = training_args(self.config, "backbone", bool(splits["validation"]), run, progress)
        describe_run(run, digest, self.config)
        before = self.model, self._labels, self._weights
        self.model, self._labels, self._weights = BertWithHead(self.model.bert, head), labels, weights
        saved_whole = TaskHeads(self.model.bert, head, self.write)
        try:
            result = train_heads(saved_whole, self.tokenizer, self.config, labels, splits, args, callbacks, resume)
        except BaseException:  # also when interrupted
            self.model, self._labels, self._weights = before
            raise
        head.unfreeze()
        self._splits = {name: self._splits.get(name, []) + part for name, part in splits.items()}
        return result

    def _split(self, examples: Sequence[Example], held_out: list[Example] | None = None) -> Splits:
        settings = self.config.training
        return split_tasks(examples, held_out, settings.val_size, settings.test_size, settings.seed)

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
        labels_of(self._labels, task)
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
            settings = {"max_length": self.config.training.max_length, "progress": bar, "model": model}
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
        data: Mapping[str, Source] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Where the model is right and wrong on a part of its own data, or on other data.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            tasks: the tasks to look at; None for all.
            data: as for :meth:`train`, to look at in place of a part.

        Returns:
            {task: what :func:`~mlx_bert.multihead_analysis.analysis_of` says}.

        Raises:
            RuntimeError: not trained, or loaded from a folder: the data are not saved.
            ValueError: an unknown part, task or label, or no data of a task.
        """
        self._require_trained("analyze")
        if data is not None:
            examples = read_task_data(data)
            return {task: self._analyze(task, examples) for task in (data if tasks is None else tasks)}
        if not self._splits:
            raise RuntimeError("[multihead] analyze needs the data of the training, which a loaded model lacks.")
        if split not in self._splits:
            raise ValueError(f"[multihead] expected split to be one of {', '.join(self._splits)} but got {split!r}.")
        return {task: self._analyze(task, self._splits[split]) for task in (self.tasks if tasks is None else tasks)}

    def _analyze(self, task: str, examples: Sequence[Example]) -> dict[str, Any]:
        names = list(labels_of(self._labels, task).names)
        examples = [example for example in examples if example["task"] == task]
        if not examples:
            raise ValueError(f"[multihead] this part of the data has no examples of the task {task!r}.")
        for example in examples:
            label_of(self._labels, example)
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
            self.write(folder)
        return path

    def write(self, folder: Path) -> None:
        """Write the files of :meth:`save` into a folder that is there, also while training."""
        write_multihead(folder, self.model, self.tokenizer, self.config.to_dict(), self._labels, self._weights)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """A new classifier of what :meth:`save` wrote. Errors are those of :meth:`load`."""
        return cls().load(path)

    def load(self, path: str | Path | None = None) -> Self:
        """Replace this classifier by what :meth:`save` wrote: settings, labels, weights.

        :meth:`from_pretrained` makes a new one: ``MultiheadClassifier.from_pretrained(path)``.

        Args:
            path: the folder; ``config.training.save_path`` by default.

        Returns:
            The classifier itself.

        Raises:
            FileNotFoundError: no such model.
            TypeError: called on the class.
            ValueError: damaged files.
        """
        if isinstance(self, str | Path):  # MultiheadClassifier.load(path)
            raise TypeError(
                "[multihead] load fills a classifier that is there. "
                f"Use MultiheadClassifier.from_pretrained({str(self)!r})."
            )
        path = Path(self.config.training.save_path if path is None else path)
        model, tokenizer, saved = read_multihead(path)
        config = MultiheadConfig.from_dict(saved["config"])
        self._labels = {task: LabelMap.from_dict(labels) for task, labels in saved["labels"].items()}
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._weights = saved["class_weights"]
        self._splits = {}
        self.is_trained = True
        return self

    def _require_trained(self, what: str) -> None:
        if not self.is_trained:
            raise RuntimeError(f"[multihead] {what} needs a trained model. Call train or load first.")


def _new_model(
    config: MultiheadConfig, labels: Mapping[str, LabelMap], weights: Mapping[str, Sequence[float]]
) -> tuple[BertWithHead, Tokenizer]:
    mx.random.seed(config.training.seed)
    folder = ready_folder(config.training.model_name)
    core = BertCore.from_pretrained(folder)
    model = BertWithHead(core, build_head(config, labels, weights, core.get_hidden_size()))
    return model, Tokenizer.from_pretrained(folder)


def _class_weights(labels: LabelMap, task: str, examples: Sequence[Example]) -> list[float]:
    counts = Counter(example["label"] for example in examples if example["task"] == task)
    return class_weights([counts[name] for name in labels.names])
