"""Task attentions: torch or numpy references, the mask contract, heads, float16, gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from heads.attention import ATTENTIONS, create_attention
from heads.attention_core import head_count
from heads.attention_variants import lambda_init

DIM = 16
VARIANTS = [(name, {}) for name in ATTENTIONS] + [
    ("differential", {"variant": "dual_mha"}),
    ("differential", {"layer_index": 12}),
    ("group_query", {"num_kv_heads": 8}),
    ("anchor", {"num_anchor_tokens": 2}),
    ("hopfield", {"update_steps_max": 3}),
    ("window", {"window_size": 3}),
    ("perceiver", {"num_latents": 3}),
]
# Rows: nothing padded, right, left, a hole, padding alone.
MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1, 1, 1, 0],
        [0] * 9,
    ]
)
WHERE = MASK.astype(bool)


def states(rows=5, length=9, dim=DIM):
    return mx.random.normal((rows, length, dim), key=mx.random.key(1))


def redrawn(name, dim=DIM, **options):
    """An attention in eval mode with parameters of std 0.3, so that each of them matters."""
    attention = create_attention(name, dim, **options).eval()
    keys = iter(mx.random.split(mx.random.key(5), 32))
    draw = lambda x: 0.3 * mx.random.normal(x.shape, key=next(keys))  # noqa: E731
    attention.load_weights([(path, draw(x)) for path, x in tree_flatten(attention.parameters())])
    return attention


def numpy_weights(attention):
    return {path: np.array(x).astype(np.float64) for path, x in tree_flatten(attention.parameters())}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads_of(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-3, -2)


def merged(x):
    return x.swapaxes(-3, -2).reshape(*x.shape[:-3], x.shape[-2], -1)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_padding_never_reaches_a_real_position(name, options):
    attention, x, mask = redrawn(name, **options), states(), mx.array(MASK)
    real = mask[..., None] > 0
    expected = np.array(attention(x, mask))
    assert expected.shape == (5, 9, DIM)
    assert np.isfinite(expected).all()
    for junk in (50.0, -1e4, mx.inf, mx.nan):
        found = np.array(attention(mx.where(real, x, junk), mask))
        np.testing.assert_array_equal(found[WHERE], expected[WHERE])


@pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if v[0] != "fnet"])
def test_length_and_side_of_padding_do_not_matter(name, options):
    attention, x = redrawn(name, **options), states(1, 5)
    alone, padding = np.array(attention(x)), mx.zeros((1, 4, DIM))
    right = attention(mx.concatenate([x, padding], axis=1), mx.array([[1] * 5 + [0] * 4]))
    left = attention(mx.concatenate([padding, x], axis=1), mx.array([[0] * 4 + [1] * 5]))
    np.testing.assert_allclose(np.array(right)[:, :5], alone, atol=1e-5)
    np.testing.assert_allclose(np.array(left)[:, 4:], alone, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_mask_types_and_no_mask_agree(name, options):
    attention, x = redrawn(name, **options), states()
    expected = np.array(attention(x, mx.array(MASK)))
    for dtype in (mx.bool_, mx.float32):
        np.testing.assert_array_equal(np.array(attention(x, mx.array(MASK).astype(dtype))), expected)
    np.testing.assert_allclose(np.array(attention(x)), np.array(attention(x, mx.ones((5, 9)))), atol=1e-5)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tokens_are_mixed(name, options):
    if name == "channel":
        options = {**options, "reduction": 1}
    x, other = states(1), np.array(states(1))
    other[:, 1] = 3
    attention = redrawn(name, **options)
    change = np.abs(np.array(attention(x)) - np.array(attention(mx.array(other))))
    assert change[0, 0].max() > 1e-5


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_parameter_learns(name, options):
    attention, mask = redrawn(name, **options), mx.array(MASK)
    if options.get("variant") == "dual_mha":
        attention.lambda_scale = mx.array([0.8])  # within the limits of lambda
    # The same number added to every key's score leaves the softmax as it was.
    dead = {"key_norm.bias"} if name == "hopfield" and not options else set()
    weights = mx.where(mask[..., None] > 0, mx.random.normal((5, 9, DIM), key=mx.random.key(9)), 0.0)
    loss = lambda model: mx.sum(model(states(), mask) * weights)  # noqa: E731
    if tree_flatten(attention.parameters()):
        for path, gradient in tree_flatten(nn.value_and_grad(attention, loss)(attention)[1]):
            assert mx.isfinite(gradient).all().item(), path
            assert path in dead or mx.abs(gradient).max().item() > 1e-6, path
    gradient = np.array(mx.grad(lambda x: mx.sum(attention(x, mask) * weights))(states()))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[WHERE]).max() > 1e-3
    np.testing.assert_array_equal(gradient[~WHERE], 0)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_half_precision_is_finite_and_close(name, options, dtype):
    attention, mask = redrawn(name, **options), mx.array(MASK)
    expected = np.array(attention(states(), mask))[WHERE]
    attention.set_dtype(dtype)
    found = attention(states().astype(dtype), mask)
    assert found.dtype == dtype
    assert mx.isfinite(found).all().item()
    difference = np.abs(np.array(found.astype(mx.float32))[WHERE] - expected).max()
    assert difference < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("dim", [1, 2, 5, 7, 9, 12, 24])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_any_hidden_size_builds_alone(name, dim):
    found = create_attention(name, dim)(states(2, 3, dim))
    assert found.shape == (2, 3, dim)
    assert mx.isfinite(found).all().item()


@pytest.mark.parametrize(
    ("name", "options"), [v for v in VARIANTS if v[0] not in ("cbam", "channel", "spatial", "fnet")]
)
def test_dropout_only_while_training(name, options):
    attention, x = redrawn(name, dropout=0.5, **options), states()
    plain = redrawn(name, **options)
    mask = mx.array(MASK)
    np.testing.assert_array_equal(np.array(attention(x, mask)), np.array(plain(x, mask)))
    attention.train()
    mx.random.seed(0)
    first, second = attention(x, mask), attention(x, mask)
    assert mx.abs(first - second).max().item() > 1e-3
    assert mx.isfinite(first).all().item()


def test_explicit_and_fused_attention_agree():
    # While training with a tiny rate the weights are formed explicitly; nothing is dropped in practice.
    for name, options in VARIANTS:
        if name in ("cbam", "channel", "spatial", "fnet"):
            continue
        explicit, fused = redrawn(name, dropout=1e-9, **options).train(), redrawn(name, **options)
        pair = (np.array(attention(states(), mx.array(MASK)))[WHERE] for attention in (explicit, fused))
        np.testing.assert_allclose(*pair, atol=1e-5, err_msg=name)


def test_multi_head_is_that_of_torch():
    ours = redrawn("multi_head", bias=True)
    theirs = torch.nn.MultiheadAttention(DIM, 8, batch_first=True)
    w = {path: torch.tensor(x, dtype=torch.float32) for path, x in numpy_weights(ours).items()}
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = w["qkv.weight"], w["qkv.bias"]
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = w["out.weight"], w["out.bias"]
    x = torch.tensor(np.array(states()))
    expected = theirs(x, x, x, key_padding_mask=torch.tensor(MASK[:, :] == 0))[0].detach().numpy()
    np.testing.assert_allclose(
        np.array(ours(states(), mx.array(MASK)))[:4][WHERE[:4]], expected[:4][WHERE[:4]], atol=1e-5
    )


def test_multi_head_cross_attends_elsewhere_as_in_torch():
    ours = redrawn("multi_head_cross")
    theirs = torch.nn.MultiheadAttention(DIM, 8, batch_first=True)
    w = {path: torch.tensor(x, dtype=torch.float32) for path, x in numpy_weights(ours).items()}
    theirs.in_proj_weight.data = torch.cat([w["q.weight"], w["kv.weight"]])
    theirs.in_proj_bias.data = torch.cat([w["q.bias"], w["kv.bias"]])
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = w["out.weight"], w["out.bias"]
    x, other = states()[:4, :5], states()[:4] * 2
    expected = theirs(
        torch.tensor(np.array(x)),
        *[torch.tensor(np.array(other))] * 2,
        key_padding_mask=torch.tensor(MASK[:4] == 0),
    )[0]
    found = ours(x, kv_input=other, kv_mask=mx.array(MASK[:4]))
    np.testing.assert_allclose(np.array(found), expected.detach().numpy(), atol=1e-5)


def test_differential_is_the_formula_of_the_paper():
    ours = redrawn("differential", layer_index=2)
    w, x = numpy_weights(ours), np.array(states()).astype(np.float64)
    q, k, v = np.split(x @ w["qkv.weight"].T, 3, axis=-1)
    q, k, v = heads_of(q, 16), heads_of(k, 16), heads_of(v, 8)  # D = 16: 8 heads, d = 1, V of 2
    maps = softmax(q @ k.swapaxes(-1, -2))
    scale = np.exp(w["lambda_q1"] @ w["lambda_k1"]) - np.exp(w["lambda_q2"] @ w["lambda_k2"]) + lambda_init(2)
    mixed = (maps[:, :8] - scale * maps[:, 8:]) @ v
    mixed = mixed / np.sqrt((mixed**2).mean(-1, keepdims=True) + 1e-5) * w["head_norm.weight"] * (1 - lambda_init(2))
    np.testing.assert_allclose(np.array(ours(states())), merged(mixed) @ w["out.weight"].T, atol=1e-4)


def test_lambda_init():
    np.testing.assert_allclose([lambda_init(l) for l in (1, 2, 12)], [0.2, 0.355509, 0.777870], atol=1e-6)


def test_dual_mha_is_the_difference_of_two_attentions():
    ours = redrawn("differential", variant="dual_mha")
    assert create_attention("differential", DIM, variant="dual_mha").lambda_scale.item() == pytest.approx(0.8)
    for scale, factor in ((0.8, 0.16), (0.0, 0.1), (9.0, 0.9)):
        ours.lambda_scale = mx.array([scale])
        expected = ours.out(ours.first(states()) - factor * ours.second(states()))
        np.testing.assert_allclose(np.array(ours(states())), np.array(expected), atol=1e-5)


def test_group_query_is_the_formula():
    ours = redrawn("group_query", dim=32, num_heads=4, num_kv_heads=2)
    w, x = numpy_weights(ours), np.array(states(dim=32)).astype(np.float64)

    def rotated(part):  # interleaved pairs (2i, 2i + 1), angle position / 10000^(2i / d)
        angle = np.arange(9)[:, None] / 10000 ** (np.arange(4) / 4)
        even, odd = part[..., 0::2], part[..., 1::2]
        turned = [even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)]
        return np.stack(turned, axis=-1).reshape(part.shape)

    k, v = (heads_of(part, 2) for part in np.split(x @ w["kv.weight"].T, 2, axis=-1))
    q, k = rotated(heads_of(x @ w["q.weight"].T, 4)), rotated(k)
    k, v = (np.repeat(part, 2, axis=1) for part in (k, v))
    mixed = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(8)) @ v
    np.testing.assert_allclose(np.array(ours(states(dim=32))), merged(mixed) @ w["out.weight"].T, atol=1e-4)


def test_group_query_default_key_value_heads():
    for dim, heads, expected in ((16, 8, 2), (9, 8, 1), (12, 8, 2), (7, 8, 1)):
        assert create_attention("group_query", dim, heads).num_kv_heads == expected


def test_mobile_mqa_shares_one_head_and_adds_its_input():
    ours = redrawn("mobile_mqa")
    w, x = numpy_weights(ours), np.array(states()).astype(np.float64)
    q = heads_of(x @ w["q.weight"].T + w["q.bias"], 8)
    k, v = (part[:, None] for part in np.split(x @ w["kv.weight"].T + w["kv.bias"], 2, axis=-1))
    mixed = merged(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(2)) @ v) @ w["out.weight"].T + w["out.bias"]
    np.testing.assert_allclose(np.array(ours(states())), x + w["residual_scale"] * mixed, atol=1e-4)
    assert create_attention("mobile_mqa", DIM).residual_scale.item() == 1


def test_window_is_multi_head_attention_per_window_with_a_bias():
    ours = redrawn("window", window_size=4)
    w, x = numpy_weights(ours), np.array(states()).astype(np.float64)
    expected = np.zeros_like(x)
    for start in (0, 4, 8):
        part = x[:, start : start + 4]
        q, k, v = (heads_of(p, 8) for p in np.split(part @ w["qkv.weight"].T + w["qkv.bias"], 3, axis=-1))
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(2)
        for i in range(part.shape[1]):
            for j in range(part.shape[1]):
                scores[:, :, i, j] += w["position_bias"][i - j + 3]
        expected[:, start : start + 4] = merged(softmax(scores) @ v) @ w["out.weight"].T + w["out.bias"]
    np.testing.assert_allclose(np.array(ours(states())), expected, atol=1e-4)


def test_anchor_tokens_see_anchors_and_so_do_all_others():
    ours = redrawn("anchor", num_anchor_tokens=3)
    w, x = numpy_weights(ours), np.array(states()).astype(np.float64)
    q, k, v = np.split(x[:, :3] @ w["qkv.weight"].T + w["qkv.bias"], 3, axis=-1)
    q = np.concatenate([q, x[:, 3:] @ w["q.weight"].T + w["q.bias"]], axis=1)
    q, k, v = (heads_of(part, 8) for part in (q, k, v))
    expected = merged(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(2)) @ v) @ w["out.weight"].T + w["out.bias"]
    np.testing.assert_allclose(np.array(ours(states())), expected, atol=1e-4)


def test_perceiver_goes_through_its_latents():
    ours = redrawn("perceiver", num_latents=4)
    latents = mx.broadcast_to(ours.latents, (5, 4, DIM))
    expected = ours.write(states(), kv_input=ours.read(latents, kv_input=states(), kv_mask=mx.array(MASK)))
    found = ours(states(), mx.array(MASK))
    np.testing.assert_allclose(np.array(found)[WHERE], np.array(expected)[WHERE], atol=1e-5)


def test_hopfield_refines_its_queries():
    w = {}
    for steps in (0, 2, 40, 80):
        ours = redrawn("hopfield", update_steps_max=steps)
        w[steps] = np.array(ours(states()))
    p, x = numpy_weights(ours), np.array(states()).astype(np.float64)
    q, k, v = (heads_of(part, 8) for part in np.split(x @ p["qkv.weight"].T + p["qkv.bias"], 3, axis=-1))

    def normed(part, name):
        centred = part - part.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    q, k = normed(q, "query_norm"), normed(k, "key_norm")
    for steps in (0, 2):
        maps = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(2))
        expected = merged(maps @ v) @ p["out.weight"].T + p["out.bias"]
        np.testing.assert_allclose(w[steps], expected, atol=1e-4)
        for _ in range(2):
            q = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(2)) @ k
    # Once the maps stand still, more steps change nothing.
    np.testing.assert_array_equal(w[40], w[80])
    # A head whose map changes by less than the tolerance keeps its queries.
    tolerant = redrawn("hopfield", update_steps_max=2, update_steps_eps=1e3)
    np.testing.assert_array_equal(np.array(tolerant(states())), w[0])


def test_cbam_is_the_formula():
    ours = redrawn("cbam")
    w, x = numpy_weights(ours), np.array(states()).astype(np.float64)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    for row in range(4):
        h = x[row][WHERE[row]]
        mlp = lambda p: np.maximum(p @ w["channel.reduce.weight"].T, 0) @ w["channel.expand.weight"].T  # noqa: E731
        gated = np.zeros((9, DIM))
        gated[WHERE[row]] = h * sigmoid(mlp(h.mean(0)) + mlp(h.max(0)))
        summary = np.pad(np.stack([gated.mean(1), gated.max(1)], axis=-1), ((3, 3), (0, 0)))
        gate = [sigmoid((summary[s : s + 7] * w["spatial.conv.weight"][0]).sum()) for s in range(9)]
        expected = (gated * np.array(gate)[:, None])[WHERE[row]]
        np.testing.assert_allclose(np.array(ours(states(), mx.array(MASK)))[row][WHERE[row]], expected, atol=1e-5)
    assert ours.channel.reduce.weight.shape == (2, DIM)


def test_fnet_is_the_unitary_transform():
    x = np.array(states()) * MASK[..., None]
    expected = np.fft.fft2(x, norm="ortho").real * MASK[..., None]
    np.testing.assert_allclose(np.array(create_attention("fnet", DIM)(states(), mx.array(MASK))), expected, atol=1e-5)


def test_head_count_is_the_largest_divisor():
    found = [head_count(dim) for dim in (768, 384, 100, 7, 11, 12, 1)]
    assert found == [8, 8, 5, 7, 1, 6, 1]
    assert head_count(768, 12) == 12


def test_errors():
    with pytest.raises(ValueError, match=r"\[attention_type\] expected an available name but got 'linear'.*hopfield"):
        create_attention("linear", DIM)
    with pytest.raises(ValueError, match=r"'non_local' \(made for images\)"):
        create_attention("non_local", DIM)
    with pytest.raises(ValueError, match=r"expected options of 'window' but got width. It accepts: .*window_size"):
        create_attention("window", DIM, width=3)
    with pytest.raises(ValueError, match=r"expected num_kv_heads to divide 8 heads but got 3"):
        create_attention("group_query", DIM, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"expected variant 'paper' or 'dual_mha' but got 'both'"):
        create_attention("differential", DIM, variant="both")
    with pytest.raises(ValueError, match=r"\[window\] expected window_size of at least 1 but got 0"):
        create_attention("window", DIM, window_size=0)
    with pytest.raises(ValueError, match=r"\[anchor\] expected num_anchor_tokens of at least 1 but got 0"):
        create_attention("anchor", DIM, num_anchor_tokens=0)
    with pytest.raises(ValueError, match=r"\[spatial\] expected an odd kernel_size but got 4"):
        create_attention("cbam", DIM, kernel_size=4)
    with pytest.raises(ValueError, match=r"\[attention\] expected dim and num_heads of at least 1 but got 16 and 0"):
        create_attention("multi_head", DIM, num_heads=0)
    with pytest.raises(
        ValueError, match=r"\[attention\] expected hidden states of shape \(B, L, D\) but got \(5, 16\)"
    ):
        create_attention("multi_head", DIM)(states()[:, 0])
