"""The losses of embeddings: value and gradient equal to sentence-transformers'."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.sentence_transformer.losses.batch_hard_triplet import BatchHardTripletLossDistanceFunction
from sentence_transformers.sentence_transformer.losses.contrastive import SiameseDistanceMetric
from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric
from sentence_transformers.util import dot_score, pairwise_cos_sim

from heads.embedding_losses import angle_similarities, margin_mse_loss, pair_similarities
from mlx_bert.training.sentence_losses import (
    AnglE,
    BatchHardTriplet,
    Cached,
    Contrastive,
    CoSENT,
    CosineSimilarity,
    DistillKL,
    EmbeddingMSE,
    MarginMSE,
    Matryoshka,
    MultipleNegativesRanking,
    OnlineContrastive,
    Triplet,
)

WIDTH = 8
RANDOM = np.random.default_rng(0)
SCORES = np.array([0.1, 0.9, 0.5, 0.5, 0.0, 1.0], dtype=np.float32)
BINARY = np.array([1, 0, 0, 1, 1, 0])
TEACHER = RANDOM.normal(size=(6, WIDTH)).astype(np.float32)


class Embeddings(torch.nn.Module):
    """Gives the embeddings that it is asked for, as a sentence-transformers model would."""

    similarity_fn_name = "cosine"

    def forward(self, features):
        return {"sentence_embedding": features["x"]}

    def get_embedding_dimension(self):
        return WIDTH


MODEL = Embeddings()
directions = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
distances = BatchHardTripletLossDistanceFunction
CASES = {
    "in_batch": (MultipleNegativesRanking(), theirs.MultipleNegativesRankingLoss(MODEL), 2, None),
    "hard_negatives": (MultipleNegativesRanking(), theirs.MultipleNegativesRankingLoss(MODEL), 4, None),
    "symmetric": (
        MultipleNegativesRanking(symmetric=True),
        theirs.MultipleNegativesRankingLoss(MODEL, **directions),
        3,
        None,
    ),
    "dot": (
        MultipleNegativesRanking(scale=0.5, similarity="dot"),
        theirs.MultipleNegativesRankingLoss(MODEL, scale=0.5, similarity_fct=dot_score),
        3,
        None,
    ),
    "cosent": (CoSENT(scale=15), theirs.CoSENTLoss(MODEL, scale=15), 2, SCORES),
    "angle": (AnglE(), theirs.AnglELoss(MODEL), 2, SCORES),
    "cosine": (CosineSimilarity(), theirs.CosineSimilarityLoss(MODEL), 2, SCORES),
    "triplet": (Triplet(margin=2.0), theirs.TripletLoss(MODEL, triplet_margin=2.0), 3, None),
    "triplet_default": (Triplet(), theirs.TripletLoss(MODEL), 3, None),
    "triplet_cosine": (
        Triplet(0.3, "cosine"),
        theirs.TripletLoss(MODEL, TripletDistanceMetric.COSINE, 0.3),
        3,
        None,
    ),
    "triplet_manhattan": (
        Triplet(1.0, "manhattan"),
        theirs.TripletLoss(MODEL, TripletDistanceMetric.MANHATTAN, 1.0),
        3,
        None,
    ),
    "batch_hard": (BatchHardTriplet(margin=1.0), theirs.BatchHardTripletLoss(MODEL, margin=1.0), 1, BINARY),
    "batch_hard_default": (BatchHardTriplet(), theirs.BatchHardTripletLoss(MODEL), 1, BINARY),
    "batch_hard_cosine": (
        BatchHardTriplet(0.3, "cosine"),
        theirs.BatchHardTripletLoss(MODEL, distances.cosine_distance, 0.3),
        1,
        BINARY,
    ),
    "batch_hard_soft": (BatchHardTriplet(None), theirs.BatchHardSoftMarginTripletLoss(MODEL), 1, BINARY),
    "contrastive": (Contrastive(), theirs.ContrastiveLoss(MODEL), 2, BINARY),
    "contrastive_manhattan": (
        Contrastive(9.0, "manhattan"),
        theirs.ContrastiveLoss(MODEL, SiameseDistanceMetric.MANHATTAN, 9.0),
        2,
        BINARY,
    ),
    "online_contrastive": (OnlineContrastive(1.2), theirs.OnlineContrastiveLoss(MODEL, margin=1.2), 2, BINARY),
    "online_euclidean": (
        OnlineContrastive(5.0, "euclidean"),
        theirs.OnlineContrastiveLoss(MODEL, SiameseDistanceMetric.EUCLIDEAN, 5.0),
        2,
        BINARY,
    ),
    "online_positives": (OnlineContrastive(), theirs.OnlineContrastiveLoss(MODEL), 2, np.ones(6, dtype=int)),
    "online_negatives": (OnlineContrastive(1.5), theirs.OnlineContrastiveLoss(MODEL, margin=1.5), 2, BINARY * 0),
    "margin_mse": (MarginMSE(), theirs.MarginMSELoss(MODEL), 3, SCORES),
    "margin_mse_differences": (MarginMSE(), theirs.MarginMSELoss(MODEL), 4, TEACHER[:, :2]),
    "margin_mse_scores": (
        MarginMSE("cosine"),
        theirs.MarginMSELoss(MODEL, similarity_fct=pairwise_cos_sim),
        4,
        TEACHER[:, :3],
    ),
    "distill_kl": (DistillKL(2.0), theirs.DistillKLDivLoss(MODEL, temperature=2.0), 4, TEACHER[:, :3]),
    "embedding_mse": (EmbeddingMSE(), theirs.MSELoss(MODEL), 2, TEACHER),
    "embedding_mse_each": (EmbeddingMSE(), theirs.MSELoss(MODEL), 2, np.stack([TEACHER, -TEACHER], axis=1)),
    "matryoshka": (
        Matryoshka(MultipleNegativesRanking(), (8, 4, 2), (1.0, 0.5, 2.0)),
        theirs.MatryoshkaLoss(MODEL, theirs.MultipleNegativesRankingLoss(MODEL), [8, 4, 2], [1.0, 0.5, 2.0]),
        3,
        None,
    ),
    "matryoshka_scores": (
        Matryoshka(CoSENT(), (3, 8)),
        theirs.MatryoshkaLoss(MODEL, theirs.CoSENTLoss(MODEL), [3, 8]),
        2,
        SCORES,
    ),
    "matryoshka_candidates": (
        Matryoshka(DistillKL(2.0), (2, 8)),
        theirs.MatryoshkaLoss(MODEL, theirs.DistillKLDivLoss(MODEL, temperature=2.0), [2, 8]),
        4,
        TEACHER[:, :3],
    ),
    "matryoshka_teacher": (
        Matryoshka(EmbeddingMSE(), (4, 8)),
        theirs.MatryoshkaLoss(MODEL, theirs.MSELoss(MODEL), [4, 8]),
        2,
        TEACHER,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_sentence_transformers(name):
    ours, reference, count, labels = CASES[name]
    arrays = [np.random.default_rng(n + 1).normal(size=(6, WIDTH)).astype(np.float32) for n in range(count)]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = reference([{"x": x.clone()} for x in tensors], None if labels is None else torch.tensor(labels))
    expected.backward()
    given = None if labels is None else mx.array(labels)
    value, gradients = mx.value_and_grad(lambda rows: ours(rows, given))([mx.array(array) for array in arrays])
    assert abs(expected.item()) > 1e-3
    np.testing.assert_allclose(value.item(), expected.item(), rtol=2e-5, atol=1e-6)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=3e-6)


def test_cached_is_the_loss_of_the_whole_batch():
    rows = [mx.random.normal((5, WIDTH)) for _ in range(2)]
    loss = MultipleNegativesRanking()
    assert Cached(loss, 2)(rows).item() == loss(rows).item()
    assert (Cached(CoSENT()).texts, Cached(CoSENT()).needs_labels) == ((2, 2), True)
    assert (Matryoshka(loss, (4,)).texts, Matryoshka(loss, (4,)).needs_labels) == ((2, None), False)


@pytest.mark.parametrize("loss", [CoSENT(), AnglE(), CosineSimilarity(), Contrastive(), OnlineContrastive()])
def test_labels_may_be_a_column(loss):
    rows, labels = [mx.array(TEACHER), mx.array(np.roll(TEACHER, 1, axis=0))], mx.array(BINARY)
    assert loss(rows, labels[:, None]).item() == pytest.approx(loss(rows, labels).item(), rel=1e-6)


def test_angle_of_an_odd_width():
    rows = RANDOM.normal(size=(2, 4, 5)).astype(np.float32)
    from sentence_transformers.util import pairwise_angle_sim

    expected = pairwise_angle_sim(torch.tensor(rows[0]), torch.tensor(rows[1]))
    np.testing.assert_allclose(angle_similarities(mx.array(rows[0]), mx.array(rows[1])), expected, atol=1e-6)


def test_zero_and_equal_embeddings_have_finite_gradients():
    same, labels = mx.zeros((3, 4)), mx.array([1, 0, 0])
    for loss, count in ((Contrastive(), 2), (OnlineContrastive(), 2), (BatchHardTriplet(), 1), (CoSENT(), 2)):
        gradients = mx.grad(lambda rows, loss=loss: loss(rows, labels))([same] * count)
        assert all(mx.isfinite(gradient).all().item() for gradient in gradients)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultipleNegativesRanking(scale=0), r"\[MultipleNegativesRanking\] expected a scale above 0 but got 0"),
        (lambda: MultipleNegativesRanking(similarity="l2"), r"expected similarity 'cosine' or 'dot' but got 'l2'"),
        (lambda: Matryoshka(CoSENT(), ()), r"\[Matryoshka\] expected positive dims"),
        (lambda: Matryoshka(CoSENT(), (4, 0)), r"\[Matryoshka\] expected positive dims"),
        (lambda: Matryoshka(CoSENT(), (4, 2), (1.0,)), r"\[Matryoshka\] expected positive dims and a weight for each"),
        (lambda: Matryoshka(Cached(CoSENT()), (4,)), r"Write Cached\(Matryoshka\(loss\)\)"),
        (
            lambda: Matryoshka(CoSENT(), (9,))([mx.ones((2, 8))] * 2, mx.array([0, 1])),
            r"expected dims of at most 8, the embeddings' width, but got \(9,\)",
        ),
        (lambda: Cached(CoSENT(), 0), r"\[Cached\] expected chunk_size of at least 1 but got 0"),
        (
            lambda: DistillKL()([mx.ones((2, 8))] * 3, mx.ones((2, 3))),
            r"\[DistillKL\] expected a score of each of 2 candidates but got labels of shape \(2, 3\)",
        ),
        (
            lambda: EmbeddingMSE()([mx.ones((2, 8))], mx.ones((2, 4))),
            r"\[EmbeddingMSE\] expected labels \(B, 8\) or \(B, 1, 8\) but got \(2, 4\)",
        ),
        (
            lambda: margin_mse_loss(mx.ones((2, 8)), mx.ones((2, 8)), [mx.ones((2, 8))], mx.ones((2, 3))),
            r"\[margin_mse_loss\] expected 1 differences or 2 scores .* got targets of shape \(2, 3\)",
        ),
        (
            lambda: pair_similarities(mx.ones((2, 8)), mx.ones((2, 8)), "l1"),
            r"\[pair_similarities\] expected similarity",
        ),
        (
            lambda: BatchHardTriplet(1.0, "manhattan")([mx.ones((2, 8))], mx.array([0, 1])),
            r"\[batch_hard_triplet_loss\] expected distance 'euclidean' or 'cosine' but got 'manhattan'",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
