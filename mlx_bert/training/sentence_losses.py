"""What a sentence encoder learns from: losses of the embeddings of a batch, with sentence-transformers' values.

Each is called with the embeddings of the texts of all examples, one array ``(B, E)`` per text (anchor, positive,
negative, ...), and with the labels. ``texts`` is the least and the greatest number of texts of an example.

Dimension key: B batch, E embedding size, M negatives, N texts of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import mlx.core as mx

from heads.losses import (
    angle_similarities,
    batch_hard_triplet_loss,
    cosent_loss,
    cosine_mse_loss,
    distillation_kl,
    margin_mse_loss,
    multiple_negatives_ranking_loss,
    online_contrastive_loss,
    pair_contrastive_loss,
    pair_similarities,
    triplet_loss,
    unit_vectors,
)

Texts = tuple[int, int | None]


class SentenceLoss(Protocol):
    """A loss of embeddings."""

    texts: Texts
    needs_labels: bool

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array | None = None) -> mx.array:
        """The loss of a batch, a scalar. ``embeddings`` are N times ``(B, E)``; ``labels`` are ``(B,)`` or more."""


@dataclass(frozen=True)
class MultipleNegativesRanking:
    """Anchors find their positives among all positives and negatives of the batch (InfoNCE, Henderson et al. 2017).

    Inputs: (anchor, positive), (anchor, positive, negative, ...). No labels. More examples in a batch are more
    negatives: see :class:`Cached`. A text that is twice in a batch is a wrong negative:
    ``batch_sampler="no_duplicates"`` prevents it.

    Args:
        scale: factor on the similarities, 1 / temperature.
        symmetric: positives must also find their anchors.
        similarity: ``"cosine"`` or ``"dot"``.
    """

    scale: float = 20.0
    symmetric: bool = False
    similarity: str = "cosine"
    texts: ClassVar[Texts] = (2, None)
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"[MultipleNegativesRanking] expected a scale above 0 but got {self.scale}. Try 20.")
        if self.similarity not in ("cosine", "dot"):
            raise ValueError(
                f"[MultipleNegativesRanking] expected similarity 'cosine' or 'dot' but got {self.similarity!r}."
            )

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array | None = None) -> mx.array:
        anchors, positives, *others = embeddings
        negatives = mx.concatenate(others) if others else None
        return multiple_negatives_ranking_loss(
            anchors, positives, negatives, self.scale, self.symmetric, normalize=self.similarity == "cosine"
        )


@dataclass(frozen=True)
class CoSENT:
    """Pairs with a greater label must be more similar. Inputs: (text, text). Labels: scores, in any unit.

    Args:
        scale: factor on the cosines.
    """

    scale: float = 20.0
    texts: ClassVar[Texts] = (2, 2)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        return cosent_loss(pair_similarities(*embeddings), labels, self.scale)


@dataclass(frozen=True)
class AnglE:
    """CoSENT on the angle of complex vectors, whose gradient does not vanish where cosines saturate.

    Inputs: (text, text) with scores as labels. Source: https://aclanthology.org/2024.acl-long.101.

    Args:
        scale: factor on the similarities.
    """

    scale: float = 20.0
    texts: ClassVar[Texts] = (2, 2)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        return cosent_loss(angle_similarities(*embeddings), labels, self.scale)


@dataclass(frozen=True)
class CosineSimilarity:
    """Squared error of the cosine. Inputs: (text, text). Labels: the cosine wanted, from -1 to 1."""

    texts: ClassVar[Texts] = (2, 2)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        return cosine_mse_loss(*embeddings, labels)


@dataclass(frozen=True)
class Triplet:
    """The negative must be ``margin`` farther than the positive. Inputs: (anchor, positive, negative). No labels.

    Args:
        margin: in units of the distance; with ``"cosine"``, whose distances end at 2, 0.1 to 0.5.
        distance: ``"euclidean"``, ``"squared_euclidean"``, ``"manhattan"`` or ``"cosine"``.
    """

    margin: float = 5.0
    distance: str = "euclidean"
    texts: ClassVar[Texts] = (3, 3)
    needs_labels: ClassVar[bool] = False

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array | None = None) -> mx.array:
        return triplet_loss(*embeddings, margin=self.margin, distance=self.distance)


@dataclass(frozen=True)
class BatchHardTriplet:
    """:class:`Triplet` with the hardest positive and negative of the batch. Inputs: one text. Labels: its class.

    Args:
        margin: as there; None for the soft margin ``log(1 + exp(d_p - d_n))``.
        distance: ``"euclidean"`` or ``"cosine"``.
    """

    margin: float | None = 5.0
    distance: str = "euclidean"
    texts: ClassVar[Texts] = (1, 1)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        return batch_hard_triplet_loss(embeddings[0], labels, self.margin, self.distance)


@dataclass(frozen=True)
class Contrastive:
    """Similar pairs near, others at least ``margin`` apart (Hadsell et al. 2006). Inputs: (text, text). Labels: 1 or 0.

    Args:
        margin: distance from which a dissimilar pair costs nothing.
        distance: ``"cosine"``, ``"euclidean"`` or ``"manhattan"``.
    """

    margin: float = 0.5
    distance: str = "cosine"
    texts: ClassVar[Texts] = (2, 2)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        return 0.5 * pair_contrastive_loss(*embeddings, labels.reshape(-1), self.margin, self.distance)


@dataclass(frozen=True)
class OnlineContrastive:
    """:class:`Contrastive` of the hard pairs of the batch alone, their sum. Inputs: (text, text). Labels: 1 or 0."""

    margin: float = 0.5
    distance: str = "cosine"
    texts: ClassVar[Texts] = (2, 2)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        return online_contrastive_loss(*embeddings, labels, self.margin, self.distance)


@dataclass(frozen=True)
class MarginMSE:
    """Learn a teacher's difference between positive and negatives (Hofstätter et al. 2020, arXiv 2010.02666).

    Inputs: (query, positive, negative, ...). Labels: the differences, or the scores of the positive and the negatives.

    Args:
        similarity: of the student: ``"dot"``, ``"cosine"``, ``"euclidean"`` or ``"manhattan"``.
    """

    similarity: str = "dot"
    texts: ClassVar[Texts] = (3, None)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        query, positive, *negatives = embeddings
        return margin_mse_loss(query, positive, negatives, labels, self.similarity)


@dataclass(frozen=True)
class DistillKL:
    """Learn a teacher's distribution over the candidates. Inputs: (query, positive, negative, ...).

    Labels: the teacher's score of each candidate, ``(B, 1 + M)``. Source: Lin et al. 2020, arXiv 2010.11386.

    Args:
        temperature: T; the loss is ``T^2 KL(softmax(teacher / T) || softmax(student / T))``.
        similarity: as in :class:`MarginMSE`.
    """

    temperature: float = 1.0
    similarity: str = "dot"
    texts: ClassVar[Texts] = (3, None)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        query, *candidates = embeddings
        if tuple(labels.shape) != (query.shape[0], len(candidates)):
            raise ValueError(
                f"[DistillKL] expected a score of each of {len(candidates)} candidates but got labels of shape "
                f"{tuple(labels.shape)}. Give the teacher's scores."
            )
        scores = mx.stack([pair_similarities(query, other, self.similarity) for other in candidates], axis=1)
        return distillation_kl(scores, labels, self.temperature)


@dataclass(frozen=True)
class EmbeddingMSE:
    """Learn a teacher's embeddings. Inputs: any texts.

    Labels: the teacher's embedding ``(B, E)``, for all texts of an example (such as translations), or one for each,
    ``(B, N, E)``.
    """

    texts: ClassVar[Texts] = (1, None)
    needs_labels: ClassVar[bool] = True

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array) -> mx.array:
        student = mx.stack(list(embeddings), axis=1).astype(mx.float32)
        teacher = mx.stop_gradient(labels).astype(mx.float32)
        teacher = mx.expand_dims(teacher, 1) if teacher.ndim == 2 else teacher
        if teacher.shape not in (student.shape, (student.shape[0], 1, student.shape[2])):
            raise ValueError(
                f"[EmbeddingMSE] expected labels (B, {student.shape[2]}) or (B, {student.shape[1]}, "
                f"{student.shape[2]}) but got {tuple(labels.shape)}. Cut the teacher's embeddings to this width."
            )
        return mx.mean(mx.square(student - teacher))


@dataclass(frozen=True)
class Matryoshka:
    """Any loss on the first values of the embeddings, for several widths at once (Kusupati et al. 2022).

    So that cut embeddings (``truncate_dim``) stay good. Cut embeddings are normalised before the loss. Inputs and
    labels are the inner loss's.

    Args:
        loss: the inner loss; for a cached one write ``Cached(Matryoshka(...))``.
        dims: widths; the full one should be among them.
        weights: of each width in the sum; None for 1 each.
    """

    loss: SentenceLoss
    dims: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        weights = (1.0,) * len(self.dims) if self.weights is None else tuple(self.weights)
        object.__setattr__(self, "weights", weights)
        if not self.dims or min(self.dims) < 1 or len(self.dims) != len(weights):
            raise ValueError(
                f"[Matryoshka] expected positive dims and a weight for each but got {self.dims} and {weights}."
            )
        if isinstance(self.loss, Cached):
            raise ValueError("[Matryoshka] expected a loss inside but got Cached. Write Cached(Matryoshka(loss)).")

    @property
    def texts(self) -> Texts:
        return self.loss.texts

    @property
    def needs_labels(self) -> bool:
        return self.loss.needs_labels

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array | None = None) -> mx.array:
        width = embeddings[0].shape[-1]
        if max(self.dims) > width:
            raise ValueError(
                f"[Matryoshka] expected dims of at most {width}, the embeddings' width, but got {self.dims}."
            )
        total = mx.array(0.0)
        for dim, weight in zip(self.dims, self.weights or (), strict=True):
            targets: Any = labels
            if labels is not None and labels.ndim > 1 and labels.shape[-1] == width:
                targets = labels[..., :dim]  # a teacher's embeddings
            total = total + weight * self.loss([unit_vectors(x[:, :dim]) for x in embeddings], targets)
        return total


@dataclass(frozen=True)
class Cached:
    """Any loss of large batches in the memory of small ones (GradCache, Gao et al. 2021, arXiv 2101.06983).

    The batch is embedded ``chunk_size`` texts at a time and embedded again in the backward pass, with the same
    dropout. ``Cached(MultipleNegativesRanking())`` is sentence-transformers' CachedMultipleNegativesRankingLoss.

    Args:
        loss: of the whole batch.
        chunk_size: texts whose intermediate results are held at a time.
    """

    loss: SentenceLoss
    chunk_size: int = 32

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"[Cached] expected chunk_size of at least 1 but got {self.chunk_size}.")

    @property
    def texts(self) -> Texts:
        return self.loss.texts

    @property
    def needs_labels(self) -> bool:
        return self.loss.needs_labels

    def __call__(self, embeddings: Sequence[mx.array], labels: mx.array | None = None) -> mx.array:
        return self.loss(embeddings, labels)
