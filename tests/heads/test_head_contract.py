"""What every head owes its user, over every case: masks, finiteness, gradients, round trips, learning."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from head_cases import CASES, B, L, build, loss_and_gradients
from mlx.utils import tree_flatten, tree_map

from heads import HEADS, create_head

CASE = pytest.mark.parametrize("name", CASES)


def flat(outputs) -> dict[str, mx.array]:
    return dict(tree_flatten(outputs))


def compared(outputs, mask) -> dict[str, np.ndarray]:
    """Outputs as numpy, with what stands at padded tokens set to 0."""
    result = {}
    for key, value in flat(outputs).items():
        if value.shape[: mask.ndim] == mask.shape and value.ndim >= mask.ndim and mask.shape[-1] == L:
            real = mask.astype(mx.bool_).reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
            value = mx.where(real, value, 0)
        result[key] = np.array(value)
    return result


def test_every_registered_head_has_a_case():
    assert {case.head_type for case in CASES.values()} == set(HEADS)


@CASE
def test_padding_content_changes_nothing(name):
    case = CASES[name]
    head = build(case)
    hidden, mask = case.inputs()
    real = mx.expand_dims(mask, -1) == 1
    # Also the loss: what stands at padding is no target either. A CRF and a span head know the mask themselves.
    targets = case.targets()
    for training in (False, True):
        head.train(training)
        mx.random.seed(0)  # some heads have dropouts of their own
        wanted = head(hidden, mask, **case.call_options)
        for junk in (7.0, -3000.0, float("nan")):
            other = mx.where(real, hidden, junk * mx.ones_like(hidden))
            mx.random.seed(0)
            got = head(other, mask, **case.call_options)
            first, second = compared(wanted, mask), compared(got, mask)
            assert first.keys() == second.keys()
            for key in first:
                np.testing.assert_allclose(second[key], first[key], atol=1e-5, err_msg=f"{key} with {junk}")
    if case.head_type not in ("token_classification", "text_generation", "multi_task_nlp"):
        assert mx.allclose(head.compute_loss(wanted, targets), head.compute_loss(got, targets), atol=1e-5)


@CASE
def test_longer_padding_changes_nothing(name):
    case = CASES[name]
    head = build(case)
    head.eval()
    hidden, mask = case.inputs()
    wanted = compared(head(hidden, mask, **case.call_options), mask)
    for left, right in ((0, 3), (2, 0)):
        widths = [(0, 0)] * (mask.ndim - 1) + [(left, right)]
        padded = mx.pad(hidden, [*widths, (0, 0)], constant_values=9.0)
        got = flat(head(padded, mx.pad(mask, widths), **case.call_options))
        for key, value in got.items():
            axis = mask.ndim - 1
            if value.ndim > axis and value.shape[axis] == L + left + right:
                value = value[(slice(None),) * axis + (slice(left, left + L),)]
                real = mask.astype(mx.bool_).reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
                value = mx.where(real, value, 0)
            np.testing.assert_allclose(np.array(value), wanted[key], atol=1e-5, err_msg=f"{key} {left} {right}")


@CASE
def test_no_mask_is_a_mask_of_ones(name):
    case = CASES[name]
    head = build(case)
    head.eval()
    hidden, mask = case.inputs()
    wanted = flat(head({"hidden_states": hidden, "attention_mask": None, "other": 1}, **case.call_options))
    for dtype in (mx.int32, mx.bool_, mx.float32):
        ones = mx.ones(mask.shape).astype(dtype)
        got = flat(head({"hidden_states": hidden, "attention_mask": ones}, **case.call_options))
        for key, value in wanted.items():
            np.testing.assert_allclose(np.array(got[key]), np.array(value), atol=1e-5, err_msg=key)


@CASE
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_empty_rows_and_short_floats_are_finite(name, dtype):
    case = CASES[name]
    head = build(case)
    hidden, mask = case.inputs()
    mask[0] = 0
    half = tree_map(lambda array: array.astype(dtype), head.parameters())
    head.update(half)
    head.eval()
    outputs = head((50 * hidden).astype(dtype), mask, **{k: v.astype(dtype) for k, v in case.call_options.items()})
    for key, value in flat(outputs).items():
        assert mx.all(mx.isfinite(value.astype(mx.float32))).item(), key
    for key in ("logits", "probabilities"):
        if isinstance(outputs.get(key), mx.array):
            assert outputs[key].dtype == mx.float32


@CASE
def test_every_parameter_learns(name):
    case = CASES[name]
    value, gradients = loss_and_gradients(build(case), case)
    assert mx.isfinite(value).item()
    for key, gradient in gradients.items():
        assert mx.all(mx.isfinite(gradient)).item(), key
        size = mx.max(mx.abs(gradient)).item()
        assert (size < 1e-5) if key in case.dead else (size > 1e-7), (key, size)


@CASE
def test_padding_content_reaches_no_gradient(name):
    case = CASES[name]
    found = []
    for content in (None, float("nan")):
        mx.random.seed(0)
        found.append(loss_and_gradients(build(case), case, content))
    assert mx.allclose(found[0][0], found[1][0], atol=1e-5)
    for key, gradient in found[0][1].items():
        np.testing.assert_allclose(np.array(found[1][1][key]), np.array(gradient), atol=1e-5, err_msg=key)


@CASE
def test_config_and_state_round_trip(name):
    case = CASES[name]
    head = build(case, seed=3)
    for key in ("thresholds", "target_mean", "target_std"):  # buffers that training leaves alone
        if hasattr(head, f"_{key}"):
            setattr(head, f"_{key}", getattr(head, f"_{key}") + 0.25)
    text = json.dumps(head.get_config())
    other = create_head(json.loads(text))
    assert type(other) is type(head)
    assert other.config == head.config
    assert json.dumps(other.get_config()) == text
    other.load_state_arrays(head.state_arrays())
    hidden, mask = case.inputs()
    head.eval()
    other.eval()
    first, second = (flat(model(hidden, mask, **case.call_options)) for model in (head, other))
    for key, value in first.items():
        assert mx.array_equal(value, second[key]), key
    assert first.keys() == second.keys()
    targets = case.targets()
    losses = [model.compute_loss(model(hidden, mask, **case.call_options), targets).item() for model in (head, other)]
    assert losses[0] == losses[1]


# The least that the loss can reach where that is not 0: entropy of soft targets, positives that share the softmax,
# target similarities outside [-1, 1].
FLOORS = {
    "text": 0.29,
    "ranking_listnet": 0.832,
    "contrastive_classes": 2.70,
    "contrastive_scores": 0.16,
    "similarity_cosine": 0.16,
}


@CASE
def test_overfits_32_samples(name):
    case = CASES[name]
    mx.random.seed(1)
    head = create_head(case.config(hidden_sizes=[16]))
    hidden, mask = case.inputs(rows=32)
    targets = case.targets(rows=32)
    # Hardest triplets collapse to one point with large steps.
    optimizer = optim.Adam(learning_rate=0.003 if name == "metric" else 0.02)

    def loss(hidden):
        return head.compute_loss(head(hidden, mask, **case.call_options), targets)

    step = nn.value_and_grad(head, loss)
    floor = FLOORS.get(name, 0.0)
    goal = floor + 0.2 * (loss(hidden).item() - floor)
    for _ in range(200):
        value, gradients = step(hidden)
        optimizer.update(head, gradients)
        mx.eval(head.parameters(), optimizer.state, value)
        if value.item() < goal:
            return
    pytest.fail(f"the loss stays at {value.item():.4f}, above {goal:.4f}")


@CASE
def test_metrics_are_numbers(name):
    case = CASES[name]
    head = build(case)
    head.eval()
    hidden, mask = case.inputs()
    outputs = head(hidden, mask, **case.call_options)
    metrics = head.compute_metrics(outputs, case.targets())
    assert metrics
    assert all(isinstance(value, float) for value in metrics.values())


@CASE
def test_dropout_only_while_training(name):
    case = CASES[name]
    head = create_head(case.config(dropout_prob=0.5, input_dropout=0.5))
    hidden, mask = case.inputs(rows=B)
    head.eval()
    first, second = (flat(head(hidden, mask, **case.call_options)) for _ in range(2))
    assert all(mx.array_equal(first[key], second[key]) for key in first)
    head.train()
    third = flat(head(hidden, mask, **case.call_options))
    assert not all(mx.array_equal(first[key], third[key]) for key in first)
