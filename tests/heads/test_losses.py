"""Losses: worked examples, torch values and gradients, what is ignored, extreme logits, float16."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from loss_checks import RNG, close, normal, same_as_torch

from heads import losses
from heads.losses import LOSSES, get_loss

F = torch.nn.functional
LOGITS = mx.array([[2, 0, -1], [0.5, 1.5, 0]])
LABELS, WEIGHTS = mx.array([0, 2]), mx.array([1, 2, 0.5])


# -- classification ------------------------------------------------------------------------------------------------


def test_cross_entropy_worked_examples():
    close(losses.cross_entropy(LOGITS, LABELS, WEIGHTS, 0.1, reduction="none"), [0.356010, 0.996476])
    close(losses.cross_entropy(LOGITS, LABELS, WEIGHTS, 0.1), 0.901657)
    close(losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.1), 1.117107)


def test_focal_worked_examples():
    close(losses.focal_loss(LOGITS, LABELS), 0.728083)
    close(losses.focal_loss(LOGITS, LABELS, class_weights=WEIGHTS, label_smoothing=0.1), 0.372631)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_that_of_torch(smoothing, weighted, reduction):
    x, labels = normal(2, 7, 4, scale=3), RNG.integers(0, 4, (2, 7))
    labels[0, :3] = -100
    weights = [0.5, 2.0, 1.0, 3.0] if weighted else None
    tensor = None if weights is None else torch.tensor(weights)
    same_as_torch(
        lambda z: losses.cross_entropy(z, mx.array(labels), weights, smoothing, reduction=reduction),
        lambda z: F.cross_entropy(
            z.reshape(-1, 4), torch.tensor(labels).reshape(-1), tensor, label_smoothing=smoothing, reduction=reduction
        ),
        x,
    )


def test_ignored_samples_cost_nothing():
    x = mx.array([[1.0, 2], [mx.nan, 3]])
    close(losses.cross_entropy(x, mx.array([1, -100])), np.log1p(np.exp(-1)))
    for loss in (losses.cross_entropy, losses.focal_loss):
        value, gradient = mx.value_and_grad(lambda z, f=loss: f(z, mx.array([-100, -100])))(mx.ones((2, 3)))
        assert value.item() == 0
        close(gradient, np.zeros((2, 3)))
    assert losses.cross_entropy(x[:1], mx.array([7]), ignore_index=7).item() == 0


@pytest.mark.parametrize("label", [3, -1, 50, 0.5, np.nan])
def test_a_label_that_is_no_class_is_never_hidden(label):
    for loss in (losses.cross_entropy, losses.focal_loss):
        assert np.isnan(loss(LOGITS, mx.array([0, label])).item())
        assert loss(LOGITS, mx.array([0.0, 2.0])).item() == loss(LOGITS, LABELS).item()
    for loss in (losses.ordinal_loss, losses.cumulative_logits_loss):
        rising = mx.array([[-1.0, 1.0]] * 2)
        assert np.isnan(loss(rising, mx.array([0, label])).item())
        assert loss(rising, mx.array([0.0, 2.0])).item() == loss(rising, LABELS).item()


@pytest.mark.parametrize("label", [2, -1, 1.5])
def test_a_binary_label_beyond_0_and_1_is_never_hidden(label):
    for loss in (losses.binary_cross_entropy, losses.binary_focal_loss):
        assert np.isnan(loss(mx.array([0.5, 1.0]), mx.array([0.0, label])).item())
        assert np.isfinite(loss(mx.array([0.5, 1.0]), mx.array([0.0, 0.3])).item())


def test_gamma_zero_is_the_plain_mean():
    x, labels = mx.array(normal(9, 4)), mx.array(RNG.integers(0, 4, 9))
    expected = mx.mean(losses.cross_entropy(x, labels, WEIGHTS4, 0.1, reduction="none"))
    close(losses.focal_loss(x, labels, gamma=0, class_weights=WEIGHTS4, label_smoothing=0.1), expected.item())


WEIGHTS4 = [0.5, 2.0, 1.0, 3.0]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_gradients(gamma):
    labels = RNG.integers(0, 4, 9)

    def theirs(z):
        log_p = F.log_softmax(z, -1).gather(1, torch.tensor(labels)[:, None])[:, 0]
        return (0.7 * (1 - log_p.exp()) ** gamma * -log_p).mean()

    same_as_torch(lambda z: losses.focal_loss(z, mx.array(labels), gamma, 0.7), theirs, normal(9, 4))


@pytest.mark.parametrize("pos_weight", [None, [0.5, 3.0, 1.0]])
@pytest.mark.parametrize("weight", [None, [2.0, 1.0, 0.3]])
def test_binary_cross_entropy_is_that_of_torch(pos_weight, weight):
    labels = RNG.integers(0, 2, (6, 3)).astype(np.float32)
    as_tensor = lambda x: None if x is None else torch.tensor(x)  # noqa: E731
    as_array = lambda x: None if x is None else mx.array(x)  # noqa: E731
    same_as_torch(
        lambda z: losses.binary_cross_entropy(z, mx.array(labels), as_array(pos_weight), as_array(weight)),
        lambda z: F.binary_cross_entropy_with_logits(
            z, torch.tensor(labels), as_tensor(weight), pos_weight=as_tensor(pos_weight)
        ),
        normal(6, 3, scale=3),
    )


def test_binary_label_smoothing_and_ignored_places():
    x, labels = normal(4, 2), np.array([[1, 0], [1, -100], [-100, 0], [0, 1]])
    kept = labels != -100
    smooth = torch.tensor(labels[kept] * 0.8 + 0.1).float()
    expected = F.binary_cross_entropy_with_logits(torch.tensor(x[kept]), smooth)
    close(losses.binary_cross_entropy(mx.array(x), mx.array(labels), label_smoothing=0.2), expected.item())
    assert losses.binary_cross_entropy(mx.array(x), mx.full((4, 2), -100)).item() == 0
    assert losses.binary_focal_loss(mx.array(x), mx.full((4, 2), -100)).item() == 0


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_binary_focal_loss(alpha, gamma):
    labels = RNG.integers(0, 2, 10).astype(np.float32)

    def theirs(z):
        y = torch.tensor(labels)
        p_t = torch.where(y > 0, z.sigmoid(), 1 - z.sigmoid())
        factor = 1.0 if alpha is None else torch.where(y > 0, alpha, 1 - alpha)
        return (factor * (1 - p_t) ** gamma * -p_t.log()).mean()

    same_as_torch(lambda z: losses.binary_focal_loss(z, mx.array(labels), gamma, alpha), theirs, normal(10))


def test_two_classes_agree_with_one_logit():
    z, labels = mx.array(normal(8)), mx.array(RNG.integers(0, 2, 8))
    both = mx.stack([mx.zeros_like(z), z], axis=-1)
    close(losses.binary_cross_entropy(z, labels), losses.cross_entropy(both, labels).item())
    close(losses.binary_focal_loss(z, labels, alpha=None), losses.focal_loss(both, labels).item())


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_extreme_logits_are_finite_with_finite_gradients(dtype):
    x = mx.array([[60000.0, -60000.0], [-60000.0, 60000.0], [0.0, 0.0]]).astype(dtype)
    classes, binary = mx.array([0, 0, 1]), mx.array([[1, 0], [1, 1], [0, 1]])
    for loss, labels in (
        (losses.cross_entropy, classes),
        (losses.focal_loss, classes),
        (lambda z, y: losses.focal_loss(z, y, gamma=0.5), classes),
        (losses.binary_cross_entropy, binary),
        (losses.binary_focal_loss, binary),
        (losses.ordinal_loss, classes),
    ):
        value, gradient = mx.value_and_grad(lambda z, f=loss, y=labels: f(z, y))(x)
        assert value.dtype == mx.float32
        assert mx.isfinite(value).item()
        assert mx.isfinite(gradient).all().item()


# -- regression ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (losses.mse_loss, F.mse_loss),
        (losses.mae_loss, F.l1_loss),
        (losses.huber_loss, F.huber_loss),
        (lambda p, y: losses.huber_loss(p, y, 0.3), lambda p, y: F.huber_loss(p, y, delta=0.3)),
    ],
)
def test_regression_losses_are_those_of_torch(ours, theirs):
    same_as_torch(ours, theirs, normal(7, 2), normal(7, 2))


def test_gaussian_nll():
    close(losses.gaussian_nll_loss(mx.array([1.0]), mx.log(mx.array([0.5])), mx.array([2.0])), 0.653426)
    target = normal(6)
    same_as_torch(
        lambda m, s: losses.gaussian_nll_loss(m, s, mx.array(target)),
        lambda m, s: F.gaussian_nll_loss(m, torch.tensor(target), s.exp()),
        normal(6),
        normal(6),
    )


def test_huber_worked_examples():
    close(losses.huber_loss(mx.array([0.5, 2.0]), mx.zeros(2), reduction="none"), [0.125, 1.5])


def test_weights_leave_targets_out():
    p, y, w = mx.array([[1.0], [2.0], [4.0]]), mx.array([0.0, mx.nan, 1.0]), mx.array([1, 0, 3])
    close(losses.mse_loss(p, y, w), (1 + 3 * 9) / 4)
    close(losses.mae_loss(p, y, w), (1 + 3 * 3) / 4)
    close(losses.huber_loss(p, y, weights=w), (0.5 + 3 * 2.5) / 4)
    close(losses.gaussian_nll_loss(p, mx.zeros((3, 1)), y, w), (0.5 + 3 * 4.5) / 4)
    for loss in (losses.mse_loss, losses.mae_loss):
        gradient = mx.grad(lambda q, f=loss: f(q, y, w))(p)
        assert mx.isfinite(gradient).all().item()
        assert gradient[1].item() == 0
        assert loss(p, y, mx.zeros(3)).item() == 0
    assert losses.mse_loss(mx.array([-100.0]), mx.array([-90.0])).item() == 100  # -100 is a number like any other


def test_targets_never_broadcast():
    p, y = mx.array([[1.0], [2.0], [3.0]]), mx.array([1.0, 2.0, 4.0])
    close(losses.mse_loss(p, y), 1 / 3)
    close(losses.mse_loss(y, p), 1 / 3)
    for loss in (losses.mse_loss, losses.mae_loss, losses.binary_cross_entropy):
        with pytest.raises(ValueError, match=r"\[loss\] expected targets of shape \(3, 1\) but got \(1, 3\)"):
            loss(p, y[None])


def test_temporal_smoothness():
    close(losses.temporal_smoothness_loss(mx.array([[1.0, 2, 4], [0, 0, 0]])), (1 + 4) / 4)
    assert losses.temporal_smoothness_loss(mx.ones((3, 1))).item() == 0


# -- ordinal -------------------------------------------------------------------------------------------------------


def test_ordinal_worked_examples():
    logits = mx.array([[1.2, -0.3]])
    close(losses.ordinal_probabilities(logits), [[0.231475, 0.342967, 0.425557]])
    close(losses.ordinal_loss(logits, mx.array([1])), 0.408819)
    coral = 0.5 + mx.array([[1.0, 0, -1]])
    close(mx.sigmoid(coral), [[0.817574, 0.622459, 0.377541]])
    close(losses.ordinal_probabilities(coral), [[0.182426, 0.195115, 0.244919, 0.377541]])


def test_ordinal_targets():
    close(losses.ordinal_targets(mx.array([0, 1, 3]), 4), [[0, 0, 0], [1, 0, 0], [1, 1, 1]])


def test_ordinal_loss_is_the_mean_of_binary_ones():
    labels = np.array([0, 3, 1, -100, 2])
    targets = (labels[:, None] > np.arange(3)).astype(np.float32)
    weights, samples = np.array([1.0, 2, 0.5, 3]), np.array([1.0, 1, 2, 5, 1])
    total = weights[np.maximum(labels, 0)] * samples * (labels >= 0)

    def theirs(z):
        each = F.binary_cross_entropy_with_logits(z, torch.tensor(targets), reduction="none").mean(1)
        return (each * torch.tensor(total).float()).sum() / total.sum()

    same_as_torch(
        lambda z: losses.ordinal_loss(z, mx.array(labels), weights.tolist(), mx.array(samples.astype(np.float32))),
        theirs,
        normal(5, 3),
    )


def test_cumulative_logits_loss():
    labels = np.array([0, 3, 1, -100, 2])
    steps = np.cumsum(np.abs(normal(5, 3)) + 0.1, axis=1).astype(np.float32) - 1

    def theirs(c):
        edges = torch.cat([torch.zeros(5, 1), c.sigmoid(), torch.ones(5, 1)], 1)
        kept = torch.tensor(labels) >= 0
        return -(edges[kept, labels[labels >= 0] + 1] - edges[kept, labels[labels >= 0]]).log().mean()

    same_as_torch(lambda c: losses.cumulative_logits_loss(c, mx.array(labels)), theirs, steps)
    far = mx.array([[-80.0, -70.0], [70.0, 80.0]])
    value, gradient = mx.value_and_grad(lambda c: losses.cumulative_logits_loss(c, mx.array([1, 1])))(far)
    close(value, 70 - np.log(1 - np.exp(-10)), atol=1e-3)
    assert mx.isfinite(gradient).all().item()


def test_ordinal_losses_ignore_and_refuse_labels():
    logits = mx.array([[-1.0, 0.5]])
    for loss in (losses.ordinal_loss, losses.cumulative_logits_loss):
        assert loss(logits, mx.array([-100])).item() == 0
        assert np.isnan(loss(logits, mx.array([3])).item())


def test_crossing_thresholds_still_give_probabilities():
    found = np.array(losses.ordinal_probabilities(mx.array([[-1.0, 1.0, 0.0]])))
    assert (found >= 0).all()
    close(found.sum(), 1)


def test_ensemble_diversity():
    p = np.abs(normal(5, 3, 4))
    unit = p / np.linalg.norm(p, axis=-1, keepdims=True)
    expected = np.mean([(unit[:, i] * unit[:, j]).sum(-1).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    close(losses.ensemble_diversity_loss(mx.array(p)), expected)
    close(losses.ensemble_diversity_loss(mx.broadcast_to(mx.array(p[:, :1]), (5, 3, 4))), 1)
    assert losses.ensemble_diversity_loss(mx.array(p[:, :1])).item() == 0


def test_hierarchical_consistency():
    parents, children = mx.array([[0.7, 0.3]]), mx.array([[0.4, 0.2, 0.4]])
    close(losses.hierarchical_consistency_loss(parents, children, mx.array([[1, 1, 0], [0, 0, 1]])), 0.01)
    # A parent without children is consistent with anything.
    close(losses.hierarchical_consistency_loss(parents, children, mx.array([[1, 1, 0], [0, 0, 0]])), 0.01)


def test_uncertainty_weighting():
    tasks = {"a": mx.array(2.0), "b": mx.array(3.0)}
    logs = {"a": mx.array([0.0]), "b": mx.log(mx.array([4.0])), "c": mx.array([1.0])}
    close(losses.uncertainty_weighted_loss(tasks, logs), 1 + (3 / 4 + np.log(4)) / 2)
    with pytest.raises(ValueError, match="expected a log variance per task but got none for b"):
        losses.uncertainty_weighted_loss(tasks, {"a": mx.array([0.0])})


def test_class_weights():
    clamp = (0.5, 3.0)
    close(losses.class_weights_from_counts([1000, 50], clamp=clamp), [0.5, 1.904762])
    close(losses.class_weights_from_counts([90, 9, 1], clamp=clamp), [0.5, 0.5, 2.673267])
    labels = np.array([0] * 90 + [1] * 9 + [2] + [-100] * 7)
    close(losses.compute_class_weights(labels, clamp=clamp), [0.5, 0.5, 2.673267])
    for method in ("inverse_freq", "effective_num"):
        close(losses.compute_class_weights(labels, method, num_classes=4).sum(), 4)
    raw = (1 - 0.9) / (1 - 0.9 ** np.array([90, 9, 1]))
    close(losses.compute_class_weights(labels, "effective_num", beta=0.9), raw / raw.mean())
    from sklearn.utils.class_weight import compute_class_weight

    reference = compute_class_weight("balanced", classes=np.arange(3), y=labels[labels >= 0])
    close(losses.compute_class_weights(labels), reference / reference.mean())


def test_registry_names_every_loss():
    assert {f for name, f in vars(losses).items() if name.endswith("_loss") and name != "reduce_loss"} - set(
        LOSSES.values()
    ) == {
        losses.ensemble_diversity_loss,
        losses.hierarchical_consistency_loss,
        losses.temporal_smoothness_loss,
        losses.get_loss,
    }
    assert get_loss("Focal") is losses.focal_loss


def test_errors():
    with pytest.raises(ValueError, match=r"\[loss\] expected an available name but got 'hinge'.*pairwise_hinge"):
        get_loss("hinge")
    with pytest.raises(
        ValueError, match=r"\[loss\] expected labels of shape \(2,\) for logits \(2, 3\) but got \(2, 1\)"
    ):
        losses.cross_entropy(LOGITS, LABELS[:, None])
    with pytest.raises(ValueError, match=r"expected reduction 'mean', 'sum' or 'none' but got 'max'"):
        losses.cross_entropy(LOGITS, LABELS, reduction="max")
    with pytest.raises(ValueError, match=r"\[focal loss\] expected gamma >= 0 but got -1"):
        losses.focal_loss(LOGITS, LABELS, gamma=-1)
    with pytest.raises(ValueError, match=r"\[class weights\] expected method .* but got 'sqrt'"):
        losses.class_weights_from_counts([1, 2], "sqrt")
    with pytest.raises(ValueError, match=r"\[class weights\] expected labels from 0 to 1 but got 0 to 2"):
        losses.compute_class_weights([0, 1, 2], num_classes=2)
    with pytest.raises(ValueError, match=r"\[class weights\] expected classes, whole numbers, as labels but got 0\.5"):
        losses.compute_class_weights([0.0, 0.5])
    with pytest.raises(ValueError, match=r"\[class weights\] expected beta in \[0, 1\) but got 1"):
        losses.class_weights_from_counts([1, 2], "effective_num", beta=1)
    with pytest.raises(ValueError, match=r"\[class weights\] expected a count of at least 0 per class but got \[\]"):
        losses.class_weights_from_counts([])
