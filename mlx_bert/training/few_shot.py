"""``FewShotClassifier``: a text classifier from a few examples per class, in the manner of SetFit.

The encoder first learns from pairs of the examples which belong together; a logistic regression on its embeddings then
tells the classes apart (Tunstall et al. 2022, "Efficient Few-Shot Learning Without Prompts").

Dimension key: N texts, C classes, E embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mlx_bert.checkpoint import FromPretrained, entries_of, read_json, write_json, write_safetensors
from mlx_bert.data.contrastive_pairs import contrastive_pairs
from mlx_bert.inference.encode import SentenceEncoder, check_texts
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.outcome import TrainResult
from mlx_bert.training.sentence import SentenceEncoderTrainer
from mlx_bert.training.sentence_losses import CosineSimilarity

CONFIG, HEAD = "few_shot_config.json", "few_shot_head.safetensors"
PICKLED_HEAD = "model_head.pkl"  # SetFit's own
DEFAULTS = {"output_dir": "few_shot_output", "epochs": 1, "batch_size": 16, "learning_rate": 2e-5, "schedule": "linear"}


class FewShotClassifier(FromPretrained):
    """An encoder and a linear classifier of its embeddings.

    Args:
        encoder: of texts.
        labels: names of the classes.
        weight: of the classifier, ``(C, E)``; None before :meth:`fit`.
        bias: ``(C,)``.
        normalize_embeddings: classify embeddings of length 1, whatever the encoder does.

    Example:
        >>> classifier = FewShotClassifier(SentenceEncoder.from_pretrained("models/minilm"))
        >>> classifier.fit(texts, labels)
        >>> classifier.predict(["What a lovely day!"])
        ['positive']
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        labels: Sequence[str] = (),
        weight: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        normalize_embeddings: bool = False,
    ) -> None:
        self.encoder = encoder
        self.labels = [str(label) for label in labels]
        self.weight, self.bias = weight, bias
        self.normalize_embeddings = normalize_embeddings
        self._runs: list[Path] = []  # folders of earlier fits

    def fit(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        args: TrainingArgs | Mapping[str, Any] | None = None,
        *,
        sampling: str = "oversampling",
        num_iterations: int | None = None,
        max_pairs: int | None = None,
        regularization: float = 1.0,
        callbacks: Sequence[Callback] = (),
        resume: bool | str | Path = False,
    ) -> TrainResult | None:
        """Train the encoder on pairs of the examples, then the classifier on its embeddings.

        It may be called again, with more examples: the encoder goes on from what it is, and the run's folder is
        ``<output_dir>-2``, then ``-3``, so that those of the fits before stay.

        Args:
            texts: the examples; 8 of each class are enough to begin with.
            labels: the name of each one's class.
            args: the settings of the encoder's training; a mapping replaces single ones of the defaults (1 epoch of
                batches of 16 pairs, rate 2e-5). ``epochs=0`` in a mapping leaves the encoder as it is.
            sampling, num_iterations, max_pairs: see :func:`mlx_bert.data.contrastive_pairs.contrastive_pairs`.
            regularization: ``C`` of the logistic regression; less holds its weights smaller.
            callbacks, resume: as for ``Trainer``.

        Returns:
            What the encoder's training came to, or None without one.

        Raises:
            FileExistsError: ``output_dir`` has results of another classifier's run, and ``resume`` is False.
            ValueError: not one label per text, fewer than two classes, or settings that don't fit.
        """
        texts, labels = check_texts(texts, "few-shot"), [str(label) for label in labels]
        settings = {} if isinstance(args, TrainingArgs) else dict(args or {})
        seed = args.seed if isinstance(args, TrainingArgs) else settings.get("seed", 42)
        pairs = contrastive_pairs(texts, labels, sampling, num_iterations, max_pairs, seed)
        result = None
        if settings.get("epochs") != 0:
            args = args if isinstance(args, TrainingArgs) else TrainingArgs.from_dict({**DEFAULTS, **settings})
            if args.max_length is None:
                args = replace(args, max_length=self.encoder.max_seq_length)
            args = replace(args, output_dir=str(self._free_folder(Path(args.output_dir))))
            trainer = SentenceEncoderTrainer(self.encoder, args, pairs, loss=CosineSimilarity(), callbacks=callbacks)
            result = trainer.train(resume)
            self._runs.append(Path(args.output_dir))
        self.fit_head(texts, labels, regularization)
        return result

    def _free_folder(self, folder: Path) -> Path:
        """The first of ``folder``, ``folder-2``, ... that no earlier fit wrote."""
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
        return next(each for each in chain([folder], numbered) if each not in self._runs)

    def fit_head(self, texts: Sequence[str], labels: Sequence[str], regularization: float = 1.0) -> None:
        """Train the classifier alone, as in :meth:`fit`."""
        from sklearn.linear_model import LogisticRegression

        if regularization <= 0:
            raise ValueError(f"[few-shot] expected regularization above 0 but got {regularization}. Use 1.")
        found = LogisticRegression(C=regularization, max_iter=1000).fit(self._embed(texts), list(labels))
        weight, bias = found.coef_, found.intercept_
        if len(found.classes_) == 2:  # one row of the second class against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.labels = [str(label) for label in found.classes_]
        self.weight, self.bias = weight.astype(np.float32), bias.astype(np.float32)

    def predict(self, texts: str | Sequence[str], batch_size: int = 32) -> str | list[str]:
        """The class of each text, or of one."""
        probabilities = self.predict_proba(texts, batch_size)
        if isinstance(texts, str):
            return self.labels[int(probabilities.argmax())]
        return [self.labels[place] for place in probabilities.argmax(axis=-1)]

    def predict_proba(self, texts: str | Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Probabilities of the classes, in the order of ``labels``: ``(N, C)``, or ``(C,)`` for one text.

        Raises:
            ValueError: the classifier is not trained.
        """
        if self.weight is None or self.bias is None:
            raise ValueError("[few-shot] expected a trained classifier but this one has no weights. Call fit first.")
        logits = self._embed(texts, batch_size) @ self.weight.T + self.bias
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def _embed(self, texts: str | Sequence[str], batch_size: int = 32) -> np.ndarray:
        return self.encoder.encode(texts, batch_size, normalize_embeddings=self.normalize_embeddings)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the encoder's folder, which sentence-transformers loads too, and the classifier in it.

        Raises:
            FileExistsError: it is there already and ``overwrite`` is False.
            ValueError: the classifier is not trained.
        """
        if self.weight is None or self.bias is None:
            raise ValueError("[few-shot] expected a trained classifier but this one has no weights. Call fit first.")
        self.encoder.save_pretrained(folder, overwrite)
        head = {"weight": mx.array(self.weight), "bias": mx.array(self.bias)}
        write_safetensors(Path(folder) / HEAD, entries_of(head))
        config = {"labels": self.labels, "normalize_embeddings": self.normalize_embeddings}
        write_json(Path(folder) / CONFIG, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: str | mx.Dtype | None = None) -> Self:
        """Load what :meth:`save_pretrained` wrote.

        Raises:
            FileNotFoundError: no such folder, or no classifier in it.
            ValueError: the folder is SetFit's, whose classifier is a pickle.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            if (folder / PICKLED_HEAD).is_file():
                raise ValueError(
                    f"[few-shot] {folder} keeps its classifier in {PICKLED_HEAD}, a pickle, which can run any code and "
                    "is not read. Load the encoder with SentenceEncoder and call fit_head with the examples."
                )
            raise FileNotFoundError(
                f"[few-shot] {folder} has no {CONFIG}. Give a folder of save_pretrained; for a new classifier, "
                "FewShotClassifier(SentenceEncoder.from_pretrained(...))."
            )
        config = read_json(folder / CONFIG)
        head = mx.load(str(folder / HEAD), format="safetensors")
        encoder = SentenceEncoder.from_pretrained(folder, dtype)
        arrays = (np.array(head[name]) for name in ("weight", "bias"))
        return cls(encoder, config["labels"], *arrays, normalize_embeddings=config["normalize_embeddings"])
