"""Ranking and contrastive losses: worked examples, torch values and gradients, extreme values."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from loss_checks import close, normal, same_as_torch

from heads import losses
from heads.losses import get_loss

F = torch.nn.functional
LOGITS = mx.array([[2, 0, -1], [0.5, 1.5, 0]])
LABELS, WEIGHTS = mx.array([0, 2]), mx.array([1, 2, 0.5])


# -- ranking -------------------------------------------------------------------------------------------------------

SCORES, RELEVANCE = mx.array([1.0, 2, 3]), mx.array([2, 0, 1])
RANKING = {
    "listnet": 1.828118,
    "ranknet": 1.251150,
    "pairwise_hinge": 1.666667,
    "lambdarank": 0.253230,
    "pointwise_ranking": (1 + 4 + 4) / 3,
}


@pytest.mark.parametrize(("name", "expected"), RANKING.items())
def test_ranking_worked_examples(name, expected):
    loss = get_loss(name)
    close(loss(SCORES, RELEVANCE), expected)
    padded = mx.array([[1.0, mx.nan, 2, 3, 99]])
    close(loss(padded, mx.array([[2, 50, 0, 1, -7]]), mx.array([[1, 0, 1, 1, 0]])), expected)
    # Two lists side by side, told apart by their ids, and a list without an item.
    twice, ids = mx.concatenate([SCORES, SCORES + 5]), mx.array([4, 4, 4, 1, 1, 1])
    if name != "pointwise_ranking":
        close(loss(twice, mx.concatenate([RELEVANCE, RELEVANCE]), group_ids=ids), expected)
        stacked = mx.stack([SCORES, SCORES, SCORES * mx.nan])
        mask = mx.array([[1] * 3, [1] * 3, [0] * 3])
        close(loss(stacked, mx.stack([RELEVANCE] * 3), mask), expected)


@pytest.mark.parametrize("name", RANKING)
def test_ranking_gradients(name):
    loss, relevance = get_loss(name), np.array([[2.0, 0, 1, 1], [0, 0, 3, 1]])
    s = normal(2, 4)

    def theirs(z):
        y = torch.tensor(relevance).float()
        d = z[:, :, None] - z[:, None, :]
        pairs = y[:, :, None] > y[:, None, :]
        if name == "listnet":
            return -(y.softmax(-1) * z.log_softmax(-1)).sum(-1).mean()
        if name == "pointwise_ranking":
            return F.mse_loss(z, y)
        if name == "pairwise_hinge":
            return F.relu(1 - d)[pairs].mean()
        if name == "ranknet":
            return F.softplus(-d)[pairs].mean()
        rank = 1 + (z[:, None, :] > z[:, :, None]).sum(-1)
        discount, gain = 1 / torch.log2(1.0 + rank), 2**y - 1
        ideal = (gain.sort(-1, descending=True)[0] / torch.log2(torch.arange(4) + 2.0)).sum(-1)
        change = (gain[:, :, None] - gain[:, None, :]) * (discount[:, :, None] - discount[:, None, :])
        return (F.softplus(-d) * (change.abs() / ideal[:, None, None]).detach())[pairs].mean()

    same_as_torch(lambda z: loss(z, mx.array(relevance.astype(np.float32))), theirs, s)


def test_ranking_without_pairs_is_zero():
    for name in ("ranknet", "pairwise_hinge", "lambdarank"):
        loss = get_loss(name)
        value, gradient = mx.value_and_grad(lambda s, f=loss: f(s, mx.zeros(3)))(SCORES)
        assert value.item() == 0
        close(gradient, np.zeros(3))
    assert losses.listnet_loss(SCORES, RELEVANCE, mx.zeros(3)).item() == 0


# -- contrastive ---------------------------------------------------------------------------------------------------

A, P, N = (mx.array([v]) for v in ([1.0, 0], [0.6, 0.8], [0.0, 1]))


def test_contrastive_worked_examples():
    first, second = mx.array([[1, 0], [0.6, 0.8]]), mx.array([[0.8, 0.6], [0, 1]])
    close(losses.info_nce_loss(first, second, 0.5), 0.524897)
    close(losses.triplet_loss(A, P, N, 0.2, "cosine"), 0)
    close(losses.triplet_loss(A, N, P, 0.2, "cosine"), 0.8)
    close(losses.pair_contrastive_loss(A, P, mx.array([1])), 0.8)
    close(losses.pair_contrastive_loss(A, P, mx.array([0])), 0.011146)
    close(losses.cosine_mse_loss(A, P, mx.array([1.0])), 0.16)


def test_info_nce_gradients_and_direction():
    a, b = normal(5, 4), normal(5, 4)

    def logits(x, y):
        return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T / 0.1

    same_as_torch(
        lambda x, y: losses.info_nce_loss(x, y, 0.1),
        lambda x, y: (
            (F.cross_entropy(logits(x, y), torch.arange(5)) + F.cross_entropy(logits(x, y).T, torch.arange(5))) / 2
        ),
        a,
        b,
        atol=1e-4,
    )
    same_as_torch(
        lambda x, y: losses.info_nce_loss(x, y, 1.0, symmetric=False, normalize=False),
        lambda x, y: F.cross_entropy(x @ y.T, torch.arange(5)),
        a,
        b,
        atol=1e-4,
    )


def test_triplet_euclidean_is_that_of_torch():
    same_as_torch(
        lambda *x: losses.triplet_loss(*x, margin=0.7, distance="euclidean"),
        lambda *x: F.triplet_margin_loss(*x, margin=0.7, eps=0),
        normal(6, 3),
        normal(6, 3),
        normal(6, 3),
    )
    expected = np.maximum(0, ((ab := normal(6, 3)) ** 2).sum(1) - ((ac := normal(6, 3)) ** 2).sum(1) + 1).mean()
    close(losses.triplet_loss(mx.zeros((6, 3)), mx.array(ab), mx.array(ac)), expected)


def test_equal_embeddings_have_finite_gradients():
    same = mx.ones((3, 4))
    for loss in (
        lambda x: losses.triplet_loss(x, same, same, distance="euclidean"),
        lambda x: losses.pair_contrastive_loss(x, same, mx.array([0, 0, 1])),
        lambda x: losses.info_nce_loss(x * 0, same),
        lambda x: losses.supervised_contrastive_loss(x * 0, mx.array([0, 0, 1])),
    ):
        assert mx.isfinite(mx.grad(loss)(same)).all().item()


def test_multiple_negatives_ranking():
    x, y, hard = normal(5, 4), normal(5, 4), normal(5, 2, 4)

    def theirs(a, p, n):
        candidates = F.normalize(torch.cat([p, n.reshape(-1, 4)]), dim=-1)
        return F.cross_entropy(20 * F.normalize(a, dim=-1) @ candidates.T, torch.arange(5))

    same_as_torch(losses.multiple_negatives_ranking_loss, theirs, x, y, hard, atol=1e-4)
    one_each = losses.multiple_negatives_ranking_loss(*map(mx.array, (x, y, hard[:, 0])))
    assert one_each.item() > losses.multiple_negatives_ranking_loss(mx.array(x), mx.array(y)).item()


def test_supervised_contrastive_by_hand():
    z, labels = normal(6, 4), np.array([0, 1, 0, 0, 2, -100])

    def theirs(x):
        x = F.normalize(x, dim=-1)
        terms = []
        for i in (0, 2, 3):
            others = [a for a in range(5) if a != i]
            norm = torch.logsumexp(torch.stack([x[i] @ x[a] / 0.2 for a in others]), 0)
            positives = [p for p in (0, 2, 3) if p != i]
            terms.append(-sum(x[i] @ x[p] / 0.2 - norm for p in positives) / 2)
        return sum(terms) / 3

    same_as_torch(lambda x: losses.supervised_contrastive_loss(x, mx.array(labels), 0.2), theirs, z)
    assert losses.supervised_contrastive_loss(mx.array(z), mx.arange(6)).item() == 0


def test_pair_contrastive_gradients():
    labels = np.array([1, 0, 0, 1])

    def theirs(x, y):
        d = (x - y).norm(dim=-1)
        t = torch.tensor(labels).float()
        return (t * d**2 + (1 - t) * F.relu(2 - d) ** 2).mean()

    ours = lambda x, y: losses.pair_contrastive_loss(x, y, mx.array(labels), 2.0)  # noqa: E731
    same_as_torch(ours, theirs, normal(4, 3), normal(4, 3))


# -- auxiliary -----------------------------------------------------------------------------------------------------


def test_distillation():
    close(losses.distillation_kl(mx.array([[1.0, 0]]), mx.array([[2.0, 0]])), 0.115688)
    teacher, labels = normal(4, 3), np.array([0, 2, -100, 1])

    def theirs(z):
        kept = torch.tensor(labels) >= 0
        soft = F.kl_div(
            F.log_softmax(z[kept] / 2, -1), F.softmax(torch.tensor(teacher)[kept] / 2, -1), reduction="batchmean"
        )
        return 0.3 * F.cross_entropy(z, torch.tensor(labels)) + 0.7 * 4 * soft

    same_as_torch(
        lambda z: losses.distillation_loss(z, mx.array(teacher), mx.array(labels), 0.7, 2.0), theirs, normal(4, 3)
    )
    gradient = mx.grad(lambda t: losses.distillation_kl(mx.array([[1.0, 0]]), t))(mx.array([[2.0, 0]]))
    close(gradient, [[0, 0]])


def test_pair_errors():
    with pytest.raises(ValueError, match=r"\[pair_distances\] expected distance .* but got 'l1'"):
        losses.triplet_loss(A, P, N, distance="l1")
    with pytest.raises(
        ValueError, match=r"\[contrastive loss\] expected two arrays of one shape .*\(1, 2\) and \(2, 2\)"
    ):
        losses.info_nce_loss(A, mx.ones((2, 2)))
