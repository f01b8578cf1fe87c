"""Regression, ordinal, time series and multi-task heads."""

import mlx.core as mx
import numpy as np
import pytest

from heads import HeadConfig, create_head

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
HIDDEN = mx.array(RNG.normal(size=(6, 8)).astype(np.float32))


def head(kind: str, size: int = 1, **fields):
    made = create_head({"head_type": kind, "input_size": 8, "output_size": size, **fields})
    made.eval()
    return made


TARGETS = mx.array([0.5, 1.5, -1.0, 3.0, 0.0, 2.0])


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_regression_losses(kind):
    model = head("regression", loss_type=kind)
    outputs = model(HIDDEN)
    assert outputs["predictions"].shape == (6, 1)
    twin = {"mse": torch.nn.MSELoss(), "mae": torch.nn.L1Loss(), "huber": torch.nn.HuberLoss(delta=1.0)}[kind]
    wanted = twin(torch.tensor(np.array(outputs["predictions"]))[:, 0], torch.tensor(np.array(TARGETS))).item()
    assert model.compute_loss(outputs, TARGETS).item() == pytest.approx(wanted, abs=1e-6)
    assert model.compute_loss(outputs, mx.expand_dims(TARGETS, 1)).item() == pytest.approx(wanted, abs=1e-6)


def test_regression_refuses_shapes_that_would_broadcast():
    model = head("regression")
    with pytest.raises(ValueError, match="targets of shape"):
        model.compute_loss(model(HIDDEN), TARGETS[:3])
    with pytest.raises(ValueError, match="'mse', 'mae' or 'huber'"):
        head("regression", loss_type="quantile")


def test_uncertainty_is_the_gaussian_likelihood_instead_of_the_squares():
    model = head("regression", use_uncertainty=True)
    outputs = {"logits": mx.array([[1.0]]), "log_variance": mx.log(mx.array([[0.5]]))}
    assert model.compute_loss(outputs, mx.array([2.0])).item() == pytest.approx(0.653426, abs=1e-5)  # V-28
    outputs = model(HIDDEN)
    assert mx.allclose(outputs["uncertainty"], mx.sqrt(outputs["variance"]))
    assert {"avg_uncertainty", "rmse", "r2"} <= set(model.compute_metrics(outputs, TARGETS))


def test_target_normalisation():
    model = head("regression", use_uncertainty=True)
    before = model(HIDDEN)
    model.set_target_normalization(10.0, 4.0)
    after = model(HIDDEN)
    assert mx.allclose(after["predictions"], 10 + 4 * before["predictions"], atol=1e-5)
    assert mx.allclose(after["uncertainty"], 4 * before["uncertainty"], atol=1e-5)
    scaled = model.compute_loss(after, 10 + 4 * TARGETS).item()
    fresh = head("regression", use_uncertainty=True)
    assert fresh.compute_loss(before, TARGETS).item() == pytest.approx(scaled, abs=1e-5)
    assert not {"target_mean", "target_std"} & set(model.parameters())
    fresh.load_state_arrays(model.state_arrays())
    assert mx.array_equal(fresh(HIDDEN)["predictions"], after["predictions"])
    with pytest.raises(ValueError, match="std above 0"):
        model.set_target_normalization(0.0, 0.0)


def test_output_scaling_is_learned():
    model = head("regression", use_output_scaling=True, num_targets=2)
    model.output_scale, model.output_shift = mx.array([2.0, 3.0]), mx.array([1.0, -1.0])
    wanted = model.output(HIDDEN) * mx.array([2.0, 3.0]) + mx.array([1.0, -1.0])
    assert mx.allclose(model(HIDDEN)["predictions"], wanted)


def ordinal(kind: str, classes: int, logits):
    """An ordinal head whose threshold logits are given."""
    model = head("ordinal_regression", classes, ordinal_type=kind)
    if kind == "coral":
        model.output.weight = mx.zeros((1, 8))
        model.threshold_bias = mx.array(logits)
    else:
        model.output.weight, model.output.bias = mx.zeros((classes - 1, 8)), mx.array(logits)
    return model


def test_ordinal_golden_vectors():
    model = ordinal("all_threshold", 3, [1.2, -0.3])
    outputs = model(HIDDEN[:1])
    np.testing.assert_allclose(
        np.array(outputs["class_probabilities"])[0], [0.231475, 0.342967, 0.425557], atol=1e-5
    )  # V-18
    assert model.compute_loss(outputs, mx.array([1])).item() == pytest.approx(0.408819, abs=1e-5)
    outputs = ordinal("coral", 4, [1.5, 0.5, -0.5])(HIDDEN[:1])
    np.testing.assert_allclose(
        np.array(outputs["class_probabilities"])[0], [0.182426, 0.195115, 0.244919, 0.377541], atol=1e-5
    )  # V-19
    assert (outputs["predictions"].item(), outputs["most_probable"].item()) == (2, 3)
    np.testing.assert_allclose(
        np.array(outputs["cumulative_probabilities"])[0], 1 - np.array([0.817574, 0.622459, 0.377541]), atol=1e-5
    )


def test_coral_starts_with_falling_thresholds():
    bias = np.array(head("ordinal_regression", 5).threshold_bias)
    assert (np.diff(bias) < 0).all()
    assert head("ordinal_regression", 5).output.weight.shape == (1, 8)


def test_cumulative_logits_are_ordered_and_give_the_likelihood():
    model = head("ordinal_regression", 4, ordinal_type="cumulative_logits")
    model.threshold_steps, model.first_threshold = mx.array([-3.0, 2.0]), mx.array([-0.7])
    outputs = model(HIDDEN)
    theta = np.array([-0.7, -0.7 + np.log1p(np.exp(-3)), -0.7 + np.log1p(np.exp(-3)) + np.log1p(np.exp(2))])
    score = np.array(HIDDEN @ model.output.weight.T)
    np.testing.assert_allclose(np.array(outputs["threshold_logits"]), score - theta, atol=1e-5)
    labels = mx.array([0, 1, 2, 3, 0, 1])
    below = np.hstack([np.zeros((6, 1)), 1 / (1 + np.exp(score - theta)), np.ones((6, 1))])
    p = np.diff(below, axis=1)
    np.testing.assert_allclose(np.array(outputs["class_probabilities"]), p, atol=1e-5)
    wanted = -np.log(p[np.arange(6), np.array(labels)]).mean()
    assert model.compute_loss(outputs, labels).item() == pytest.approx(wanted, abs=1e-5)


def test_ordinal_temperature_and_weights():
    hot, cold = (head("ordinal_regression", 3, ordinal_type="all_threshold", temperature=t) for t in (1.0, 2.0))
    cold.load_state_arrays(hot.state_arrays())
    assert mx.allclose(cold(HIDDEN)["logits"] * 2, hot(HIDDEN)["logits"])
    plain, weighted = head("ordinal_regression", 3), head("ordinal_regression", 3, class_weights=[1.0, 2.0, 4.0])
    logits, labels = mx.array(RNG.normal(size=(3, 2)).astype(np.float32)), mx.array([0, 1, 2])
    each = np.array(
        [plain.compute_loss({"threshold_logits": logits[i : i + 1]}, labels[i : i + 1]).item() for i in range(3)]
    )
    outputs = {"threshold_logits": logits}
    assert plain.compute_loss(outputs, labels).item() == pytest.approx(each.mean(), abs=1e-6)
    wanted = (each * [1, 2, 4]).sum() / 7
    assert weighted.compute_loss(outputs, labels).item() == pytest.approx(wanted, abs=1e-6)
    by_sample = plain.compute_loss(outputs, labels, sample_weights=mx.array([1.0, 2.0, 4.0])).item()
    assert by_sample == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"ordinal_type": "probit"}, "ordinal_type"),
        ({"temperature": 0.0}, "positive temperature"),
        ({"output_size": 1}, "at least 2 classes"),
        ({"class_weights": [1.0]}, "class_weights"),
    ],
)
def test_ordinal_refusals(fields, match):
    with pytest.raises(ValueError, match=match):
        create_head({"head_type": "ordinal_regression", "input_size": 8, "output_size": 3, **fields})


def test_ordinal_metrics():
    found = head("ordinal_regression", 4).compute_metrics(
        {"predictions": mx.array([0, 1, 2, 3])}, mx.array([[0], [2], [2], [1]])
    )
    assert found["accuracy"] == 0.5
    assert found["mae"] == 0.75
    assert found["ordinal_accuracy"] == 0.75
    assert {"qwk", "kendall_tau"} <= set(found)


SEQUENCE = mx.array(RNG.normal(size=(3, 5, 8)).astype(np.float32))
MASK = mx.array([[1] * 5, [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])


def test_time_series_classification_by_hand():
    model = head("time_series_classification", 4, hidden_dim=6, pooling_type="mean")
    assert (len(model.encoder.forward_layers), len(model.encoder.backward_layers)) == (2, 2)
    states = model.encoder(SEQUENCE, MASK)
    states = model.temporal_norm(states + model.temporal_attention(states, MASK.astype(mx.bool_)))
    pooled = mx.sum(states * mx.expand_dims(MASK, -1), axis=1) / mx.sum(MASK, axis=1, keepdims=True)
    wanted = model.output(model.output_norm(pooled))
    np.testing.assert_allclose(np.array(model(SEQUENCE, MASK)["logits"]), np.array(wanted), atol=1e-5)


def test_time_series_defaults():
    model = head("time_series_classification", 4)
    assert model.encoder.output_size == 256
    assert (model.config.pooling_type, model.encoder.dropout._p_1) == ("last", pytest.approx(0.8))
    assert head("time_series_regression").encoder.output_size == 4


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer"])
def test_time_series_regression_is_a_sum(kind):
    model = head("time_series_regression", forecast_horizon=3, temporal_encoder=kind)
    outputs = model(SEQUENCE, MASK)
    assert outputs["predictions"].shape == (3, 3)
    parts = outputs["trend"] + outputs["seasonal"] + outputs["residual"]
    assert mx.array_equal(outputs["predictions"], parts)
    targets = mx.array(RNG.normal(size=(3, 3)).astype(np.float32))
    forecast = np.array(outputs["predictions"])
    wanted = ((forecast - np.array(targets)) ** 2).mean() + 0.1 * (np.diff(forecast, axis=1) ** 2).mean()
    assert model.compute_loss(outputs, targets).item() == pytest.approx(wanted, abs=1e-5)
    assert "directional_accuracy" in model.compute_metrics(outputs, targets)


@pytest.mark.parametrize("features", [True, False])
def test_a_forecast_is_in_units_of_its_targets(features):
    model = head("time_series_regression", forecast_horizon=3, use_temporal_features=features)
    plain = model(SEQUENCE, MASK)
    mean, std = mx.array([1000.0, 0.0, -5.0]), mx.array([5.0, 1.0, 0.1])
    targets = mx.array(RNG.normal(size=(3, 3)).astype(np.float32))
    wanted = model.compute_loss(plain, targets).item()
    model.set_target_normalization(mean.tolist(), std.tolist())
    outputs = model(SEQUENCE, MASK)
    assert mx.array_equal(outputs["logits"], plain["logits"])
    np.testing.assert_allclose(outputs["predictions"], plain["logits"] * std + mean, rtol=1e-6)
    if features:
        parts = outputs["trend"] + outputs["seasonal"] + outputs["residual"]
        np.testing.assert_allclose(outputs["predictions"], parts, rtol=1e-6)
    assert model.compute_loss(outputs, targets * std + mean).item() == pytest.approx(wanted, rel=1e-3)
    again = head("time_series_regression", forecast_horizon=3, use_temporal_features=features)
    again.load_state_arrays(model.state_arrays())
    assert mx.array_equal(again(SEQUENCE, MASK)["predictions"], outputs["predictions"])
    assert not {"target_mean", "target_std"} & set(model.parameters())
    with pytest.raises(ValueError, match="expected std above 0"):
        model.set_target_normalization(0.0, [1.0, 0.0, 1.0])


def test_time_series_of_one_step():
    model = head("time_series_regression")
    outputs = model(SEQUENCE, MASK)
    wanted = mx.mean(mx.square(outputs["predictions"][:, 0] - TARGETS[:3]))
    assert mx.allclose(model.compute_loss(outputs, TARGETS[:3]), wanted)
    assert "directional_accuracy" not in model.compute_metrics(outputs, TARGETS[:3])


@pytest.mark.parametrize(
    ("kind", "fields", "match"),
    [
        ("time_series_regression", {"temporal_encoder": "tcn"}, "'lstm', 'gru' or 'transformer'"),
        ("time_series_regression", {"temporal_encoder": "transformer", "num_layers": 2}, "one layer"),
        ("time_series_regression", {"use_pooling": False}, "use_pooling=True"),
        ("time_series_classification", {"hidden_dim": 7}, "even hidden_dim"),
    ],
)
def test_time_series_refusals(kind, fields, match):
    with pytest.raises(ValueError, match=match):
        create_head({"head_type": kind, "input_size": 8, "output_size": 3, **fields})
    with pytest.raises(ValueError, match=r"\(B, L, D\)"):
        head("time_series_regression")(HIDDEN)


TASKS = {"topic": {"type": "classification", "num_classes": 3}, "score": {"type": "regression"}}


def test_multi_task_by_hand():
    model = head("multi_task", task_configs=TASKS, task_weights={"score": 2.0})
    assert model.shared.dense.weight.shape == (256, 8)
    assert model.tasks["topic"].hidden.weight.shape == (128, 256)
    outputs = model(HIDDEN)
    shared = model.shared.norm(mx.maximum(model.shared.dense(HIDDEN), 0))
    branch = model.tasks["score"]
    wanted = branch.output(mx.maximum(branch.hidden(shared), 0))
    np.testing.assert_allclose(np.array(outputs["score_logits"]), np.array(wanted), atol=1e-5)
    assert mx.array_equal(outputs["logits"], outputs["topic_logits"])
    assert set(outputs["predictions"]) == set(TASKS)
    topic = mx.array([0, 1, 2, 0, 1, 2])
    targets = {"topic": topic, "score": TARGETS}
    ce = torch.nn.functional.cross_entropy(
        torch.tensor(np.array(outputs["topic_logits"])), torch.tensor(np.array(topic)).long()
    ).item()
    mse = ((np.array(wanted)[:, 0] - np.array(TARGETS)) ** 2).mean()
    assert model.compute_loss(outputs, targets).item() == pytest.approx(ce + 2 * mse, rel=1e-4)
    assert model.compute_loss(outputs, {"topic": topic}).item() == pytest.approx(ce, abs=1e-5)
    found = model.compute_metrics(outputs, targets)
    assert found["mean"] == pytest.approx((found["topic_accuracy"] + found["score_r2"]) / 2)


def test_multi_task_uncertainty_weighting():
    model = head("multi_task", task_configs=TASKS, use_uncertainty_weighting=True)
    assert set(model.trainable_parameters()["log_variances"]) == set(TASKS)
    model.log_variances = {"topic": mx.array([0.3]), "score": mx.array([-0.5])}
    outputs = model(HIDDEN)
    targets = {"topic": mx.array([0, 1, 2, 0, 1, 2]), "score": TARGETS}
    each = model.compute_losses(outputs, targets)
    wanted = sum(0.5 * np.exp(-s) * each[task].item() + 0.5 * s for task, s in (("topic", 0.3), ("score", -0.5)))
    assert model.compute_loss(outputs, targets).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "task_configs"),
        ({"task_configs": {"a": {"type": "ranking"}}}, "'ranking'"),
        ({"task_configs": {"a": {"type": "regression", "colour": 1}}}, "colour"),
        ({"task_configs": {"a": {"type": "regression"}}, "task_weights": {"b": 1.0}}, "among a but got b"),
        ({"task_configs": {"1": {"type": "regression"}}}, "are no numbers"),
    ],
)
def test_multi_task_refusals(fields, match):
    with pytest.raises(ValueError, match=match):
        create_head(HeadConfig("multi_task", 8, 1, extra=fields))
