"""Binary, multiclass, multilabel, ensemble and token heads: outputs and losses against torch and by hand."""

import mlx.core as mx
import numpy as np
import pytest

from heads import create_head
from heads.classification import best_f1_threshold

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(0)
HIDDEN = mx.array(RNG.normal(size=(6, 8)).astype(np.float32))


def head(kind: str, size: int = 3, **fields):
    made = create_head({"head_type": kind, "input_size": 8, "output_size": size, **fields})
    made.eval()
    return made


def as_torch(array) -> "torch.Tensor":
    return torch.tensor(np.array(array))


def test_binary_outputs():
    model = head("binary_classification", pos_weight=2.0, threshold=0.7)
    model.output.weight = model.output.weight * 50
    outputs = model(HIDDEN)
    p = 1 / (1 + np.exp(-np.array(outputs["logits"])))
    assert p.shape == (6, 1)
    np.testing.assert_allclose(np.array(outputs["probabilities"]), p, atol=1e-6)
    np.testing.assert_allclose(np.array(outputs["probabilities_2class"]), np.hstack([1 - p, p]), atol=1e-6)
    assert np.array_equal(np.array(outputs["predictions"]), p > 0.7)
    assert outputs["predictions"].dtype == mx.int32
    assert np.array_equal(np.array(head("binary_classification")(HIDDEN)["predictions"]).shape, (6, 1))


LABELS = mx.array([0, 1, 1, 0, 1, 0])


def test_binary_losses():
    logits = mx.array(RNG.normal(size=(6, 1)).astype(np.float32))
    z, y = as_torch(logits)[:, 0], as_torch(LABELS).float()
    outputs = {"logits": logits}
    plain = head("binary_classification")
    wanted = F.binary_cross_entropy_with_logits(z, y).item()
    assert plain.compute_loss(outputs, LABELS).item() == pytest.approx(wanted, abs=1e-6)
    assert plain.compute_loss(outputs, mx.expand_dims(LABELS, 1)).item() == pytest.approx(wanted, abs=1e-6)

    weighted = head("binary_classification", pos_weight=3.0, label_smoothing=0.2)
    wanted = F.binary_cross_entropy_with_logits(z, y * 0.8 + 0.1, pos_weight=torch.tensor(3.0)).item()
    assert weighted.compute_loss(outputs, LABELS).item() == pytest.approx(wanted, abs=1e-6)

    by_class = head("binary_classification", class_weights=[1.0, 4.0])
    both = torch.stack([torch.zeros(6), z], dim=1)
    wanted = F.cross_entropy(both, y.long(), weight=torch.tensor([1.0, 4.0])).item()
    assert by_class.compute_loss(outputs, LABELS).item() == pytest.approx(wanted, abs=1e-6)

    focal = head("binary_classification", loss="focal")
    p = torch.where(y == 1, z.sigmoid(), 1 - z.sigmoid())
    alpha = torch.where(y == 1, 0.25, 0.75)
    wanted = (-alpha * (1 - p) ** 2 * p.log()).mean().item()
    assert focal.compute_loss(outputs, LABELS).item() == pytest.approx(wanted, abs=1e-6)


def test_binary_focal_loss_with_class_weights():
    logits = mx.array(RNG.normal(size=(6, 1)).astype(np.float32))
    z, y = as_torch(logits)[:, 0], as_torch(LABELS).float()
    model = head("binary_classification", loss="focal", class_weights=[1.0, 4.0], focal_gamma=1.0)
    p = torch.where(y == 1, z.sigmoid(), 1 - z.sigmoid())
    wanted = (-torch.where(y == 1, 4.0, 1.0) * (1 - p) * p.log()).mean().item()
    assert model.compute_loss({"logits": logits}, LABELS).item() == pytest.approx(wanted, abs=1e-6)


def test_tricks_are_off_by_default():
    assert "temperature" not in head("binary_classification")
    assert head("binary_classification").loss == "bce"
    tricky = head("binary_classification", use_competition_tricks=True)
    assert (tricky.loss, tricky.temperature.tolist()) == ("focal", [1.0])
    tricky.temperature = mx.array([2.0])
    plain = head("binary_classification")
    plain.load_state_arrays({name: value for name, value in tricky.state_arrays().items() if name != "temperature"})
    assert mx.allclose(tricky(HIDDEN)["logits"] * 2, plain(HIDDEN)["logits"])
    assert "temperature" in head("binary_classification", use_temperature=True)
    many = head("multiclass_classification", use_competition_tricks=True)
    assert (many.loss, many.label_smoothing) == ("focal", 0.1)
    kept = head("multiclass_classification", use_competition_tricks=True, label_smoothing=0.3, loss="cross_entropy")
    assert (kept.loss, kept.label_smoothing) == ("cross_entropy", 0.3)


def test_binary_metrics():
    model = head("binary_classification")
    scores = mx.array([[0.1], [0.4], [0.35], [0.8]])
    found = model.compute_metrics({"probabilities": scores}, mx.array([0, 0, 1, 1]))
    assert found["auc"] == pytest.approx(0.75)  # V-25
    assert found["accuracy"] == pytest.approx(0.75)
    assert set(found) == {"accuracy", "precision", "recall", "f1", "auc"}


def test_multiclass_labels_and_ignore():
    model = head("multiclass_classification")
    logits, labels = mx.array(RNG.normal(size=(4, 3)).astype(np.float32)), mx.array([0, -100, 2, 1])
    wanted = F.cross_entropy(as_torch(logits), as_torch(labels).long(), ignore_index=-100).item()
    assert model.compute_loss({"logits": logits}, labels).item() == pytest.approx(wanted, abs=1e-6)
    assert model.compute_loss({"logits": logits}, mx.expand_dims(labels, 1)).item() == pytest.approx(wanted, abs=1e-6)
    assert model.compute_loss({"logits": logits}, mx.full((4,), -100)).item() == 0


def test_multiclass_metrics():
    found = head("multiclass_classification", 4).compute_metrics(
        {"logits": mx.eye(4)[mx.array([0, 1, 2, 2])]}, mx.array([0, 1, 2, 3])
    )
    assert found["accuracy"] == 0.75
    assert {"f1_macro", "top3_accuracy"} <= set(found)


def test_multilabel_losses():
    logits = mx.array(RNG.normal(size=(6, 3)).astype(np.float32))
    labels = mx.array(RNG.integers(0, 2, (6, 3)))
    weights, smoothing = [1.0, 2.0, 3.0], 0.1
    model = head("multilabel_classification", pos_weight=weights, class_weights=[3, 1, 2], label_smoothing=smoothing)
    y = as_torch(labels).float() * (1 - smoothing) + smoothing / 2
    wanted = F.binary_cross_entropy_with_logits(
        as_torch(logits), y, torch.tensor([3.0, 1, 2]), pos_weight=torch.tensor(weights)
    ).item()
    assert model.compute_loss({"logits": logits}, labels).item() == pytest.approx(wanted, abs=1e-6)


def test_thresholds_maximise_each_labels_f1_and_are_saved():
    probabilities = RNG.random((60, 3)).astype(np.float32)
    truth = (probabilities + RNG.normal(scale=0.2, size=(60, 3)) > np.array([0.3, 0.6, 0.8])).astype(int)
    model = head("multilabel_classification")
    assert model(HIDDEN)["probabilities"].shape == (6, 3)
    found = np.array(model.fit_thresholds(mx.array(probabilities), mx.array(truth)))
    assert len(set(found.tolist())) == 3

    def f1(label: int, threshold: float) -> float:
        guess, right = probabilities[:, label] > threshold, truth[:, label] == 1
        return 2 * (guess & right).sum() / (guess.sum() + right.sum())

    for label in range(3):
        assert f1(label, found[label]) >= max(f1(label, t) for t in np.linspace(0, 1, 500)) - 1e-9
    assert "thresholds" not in model.parameters()
    assert mx.array_equal(model.state_arrays()["thresholds"], mx.array(found))
    outputs = model(HIDDEN)
    assert np.array_equal(np.array(outputs["predictions"]), np.array(outputs["probabilities"]) > found)
    other = head("multilabel_classification")
    other.load_state_arrays(model.state_arrays())
    assert mx.array_equal(other(HIDDEN)["predictions"], outputs["predictions"])


def test_threshold_corner_cases():
    assert best_f1_threshold(np.array([0.2, 0.9, 0.9]), np.array([False, True, False])) == pytest.approx(0.55)
    assert best_f1_threshold(np.array([0.4]), np.array([True])) == pytest.approx(0.2)
    model = head("multilabel_classification")
    never = mx.zeros((4, 3))
    assert model.fit_thresholds(mx.array(RNG.random((4, 3))), never).tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="fit_thresholds"):
        model.fit_thresholds(never[:, :2], never[:, :2])


@pytest.mark.parametrize("method", ["average", "weighted", "attention"])
def test_ensemble_combines_its_members(method):
    model = head("ensemble", ensemble_method=method, temperature=2.0, num_heads=4)
    if method == "weighted":
        model.member_weights = mx.array([0.0, 1.0, 2.0, -1.0])
    outputs = model(HIDDEN)
    members = np.stack([np.array(member(HIDDEN)) for member in model.members], axis=1) / 2
    np.testing.assert_allclose(np.array(outputs["member_logits"]), members, atol=1e-6)
    weights = np.full((6, 4), 0.25)
    if method == "weighted":
        weights[:] = np.array(mx.softmax(model.member_weights))
    elif method == "attention":
        weights = np.array(mx.softmax(model.member_attention(HIDDEN), axis=-1))
    np.testing.assert_allclose(np.array(outputs["logits"]), (weights[..., None] * members).sum(1), atol=1e-6)


def test_ensemble_loss_and_members():
    model = head("ensemble", num_heads=4, diversity_weight=0.5)
    activations = [member.block.activation(mx.array([-1.0])).item() for member in model.members]
    assert activations == pytest.approx([-0.158655, 0.0, -0.268941, -0.158655], abs=1e-5)  # gelu, relu, silu, gelu
    assert [round(1 - m.block.dropout._p_1, 4) for m in model.members] == [0.1, 0.2, 0.3, 0.1]
    outputs = model(HIDDEN)
    labels = mx.array([0, 1, 2, 0, 1, 2])
    p = np.array(mx.softmax(outputs["member_logits"], axis=-1))
    p /= np.linalg.norm(p, axis=-1, keepdims=True)
    similarity = np.mean([(p[:, i] * p[:, j]).sum(-1).mean() for i in range(4) for j in range(i)])
    plain = F.cross_entropy(as_torch(outputs["logits"]), as_torch(labels).long()).item()
    assert model.compute_loss(outputs, labels).item() == pytest.approx(plain + 0.5 * similarity, abs=1e-5)


def test_ensemble_members_pool_for_themselves():
    model = head("ensemble", num_heads=2, member_poolings=["cls", "max"], ensemble_size=2)
    x = mx.random.normal((2, 5, 8))
    members = model(x)["member_logits"]
    assert mx.allclose(members[:, 0], model.members[0](x[:, 0]), atol=1e-6)
    assert mx.allclose(members[:, 1], model.members[1](mx.max(x, axis=1)), atol=1e-6)
    assert head("ensemble").num_members == 3
    assert head("ensemble", ensemble_size=5).num_members == 5
    with pytest.raises(ValueError, match="to agree"):
        head("ensemble", num_heads=2, ensemble_size=5)
    with pytest.raises(ValueError, match="ensemble_method"):
        head("ensemble", ensemble_method="vote")
    with pytest.raises(ValueError, match="use_pooling=True with member_poolings"):
        head("ensemble", member_poolings=["cls"], use_pooling=False)


def test_token_loss_with_weights():
    model = head("token_classification", class_weights=[1.0, 3.0, 0.5], label_smoothing=0.1)
    logits = mx.array(RNG.normal(size=(2, 4, 3)).astype(np.float32))
    labels = mx.array([[0, 1, 2, -100], [2, -100, -100, 1]])
    wanted = F.cross_entropy(
        as_torch(logits).flatten(0, 1),
        as_torch(labels).long().flatten(),
        torch.tensor([1.0, 3.0, 0.5]),
        label_smoothing=0.1,
    ).item()
    assert model.compute_loss({"logits": logits}, labels).item() == pytest.approx(wanted, abs=1e-6)


def test_bilstm_tagger_by_hand():
    """BiLSTM, LayerNorm, Linear, GELU, dropout, Linear: the tagger of the joint intent and entity model."""
    model = head("token_classification", 5, rnn_layers=2, rnn_hidden=3, hidden_sizes=[], dropout_prob=0.1)
    x, mask = mx.random.normal((2, 6, 8)), mx.array([[1] * 6, [1, 1, 1, 0, 0, 0]])
    states = model.rnn_norm(model.rnn(x, mask))
    dense = model.rnn_dense(states)
    wanted = model.output(dense * 0.5 * (1 + mx.erf(dense / 2**0.5)))
    np.testing.assert_allclose(np.array(model(x, mask)["logits"])[0], np.array(wanted)[0], atol=1e-5)
    assert (states.shape[-1], dense.shape[-1], len(model.rnn.backward_layers)) == (6, 8, 2)


def test_crf_head_predicts_the_viterbi_path():
    model = head("token_classification", use_crf=True)
    model.transitions = mx.array([[0.0, -50, -50], [-50, 0, -50], [-50, -50, 0]])  # never change the label
    x = mx.random.normal((3, 6, 8))
    outputs = model(x)
    assert "probabilities" not in outputs
    best = np.array(mx.argmax(mx.sum(outputs["logits"], axis=1), axis=-1))
    assert np.array_equal(np.array(outputs["predictions"]), np.repeat(best[:, None], 6, axis=1))
    labels = mx.array([[0] * 6, [1] * 6, [-100] * 6])
    loss = model.compute_loss(outputs, labels).item()
    scores = np.array(mx.sum(outputs["logits"], axis=1))
    wanted = np.mean([np.log(np.exp(scores[i]).sum()) - scores[i, i] for i in range(2)])
    assert loss == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields", "match"),
    [
        ("binary_classification", {"loss": "hinge"}, "'bce' or 'focal'"),
        ("binary_classification", {"class_weights": [1, 2], "pos_weight": 2.0}, "got both"),
        ("multilabel_classification", {"loss": "focal", "class_weights": [1, 2, 3]}, "Use pos_weight"),
        ("token_classification", {"loss": "hinge"}, "'cross_entropy' or 'focal'"),
        ("token_classification", {"class_weights": [1, 2]}, "3 class_weights"),
        ("token_classification", {"use_crf": True, "label_smoothing": 0.1}, "whole path"),
        ("text_classification", {"output_size": 1, "label_smoothing": 0.1}, "which is a regression"),
        ("text_generation", {"objective": "prefix"}, "'mlm' or 'causal'"),
    ],
)
def test_refusals(kind, fields, match):
    with pytest.raises(ValueError, match=match):
        create_head({"head_type": kind, "input_size": 8, "output_size": 3, **fields})
