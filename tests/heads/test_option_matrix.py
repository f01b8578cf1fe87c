"""Every head with every pooling, normalisation, activation, attention and FFN: it builds, runs, and learns everywhere.

The full product has millions of rows. Each head meets each option once (one factor value per row, all factors moving),
and a covering design on one head meets every pair of options.
"""

import itertools
import json

import mlx.core as mx
import pytest
from head_cases import CASES, build, loss_and_gradients, stable_seed
from mlx.utils import tree_flatten, tree_map

from heads import create_head
from heads.activations import ACTIVATIONS
from heads.attention import ATTENTIONS
from heads.ffn import FFNS
from heads.normalization import NORMALIZATIONS
from heads.pooling import POOLINGS

FACTORS = {
    "pooling_type": [name for name in POOLINGS if name != "none"],
    "normalization_type": [name for name in NORMALIZATIONS if name != "none"],
    "activation": list(ACTIVATIONS),
    "attention_type": list(ATTENTIONS),
    "ffn_type": list(FFNS),
}
# One case for each head type.
HEAD_CASES = {case.head_type: name for name, case in reversed(CASES.items())}
ROWS_PER_TEST = 8


def options(row: dict[str, str]) -> dict:
    # The usual temperature gives vectors of length 25, whose cube (relu_k) saturates every softmax after it.
    logit_norm = row["normalization_type"] == "logit_norm"
    return {
        **row,
        "normalization_options": {"temperature": 0.4} if logit_norm else {},
        "hidden_sizes": [12],
        "use_input_norm": True,
        "use_task_attention": True,
        "use_ffn": True,
        "ffn_expansion_factor": 2,
    }


def rows_of(head: str) -> list[dict[str, str]]:
    """As many rows as the longest factor has values; each value occurs, in other company for each head."""
    shift = stable_seed(head)
    longest = max(len(values) for values in FACTORS.values())
    return [
        {name: values[(row + shift // (7 * k + 1)) % len(values)] for k, (name, values) in enumerate(FACTORS.items())}
        for row in range(longest)
    ]


def pairs_of(row: dict[str, str]) -> set:
    return set(itertools.combinations([(name, row[name]) for name in FACTORS if name in row], 2))


def pairwise_rows() -> list[dict[str, str]]:
    """Rows that together contain every pair of values of two factors, chosen greedily."""
    names = list(FACTORS)
    missing = {
        ((first, a), (second, b))
        for first, second in itertools.combinations(names, 2)
        for a in FACTORS[first]
        for b in FACTORS[second]
    }
    rows = []
    while missing:
        row = dict(min(missing))
        for name in names:
            if name not in row:
                gains = {value: len(pairs_of({**row, name: value}) & missing) for value in FACTORS[name]}
                row[name] = max(gains, key=gains.get)
        missing -= pairs_of(row)
        rows.append(row)
    return rows


def outputs_of(head, case, hidden: mx.array, mask: mx.array) -> dict[str, mx.array]:
    return dict(tree_flatten(head(hidden, mask, **case.call_options)))


def check(case_name: str, row: dict[str, str]) -> None:
    case = CASES[case_name]
    head = build(case, seed=1, scale=0.1, **options(row))
    check_gradients(case_name, row, head)
    check_round_trip(case, row, head)


def check_round_trip(case, row: dict[str, str], head) -> None:
    other = create_head(json.loads(json.dumps(head.get_config())))
    other.load_state_arrays(head.state_arrays())
    hidden, mask = case.inputs()
    head.eval()
    other.eval()
    first, second = (outputs_of(model, case, hidden, mask) for model in (head, other))
    assert all(mx.array_equal(value, second[key]).item() for key, value in first.items()), (row, case.head_type)


def check_gradients(case_name: str, row: dict[str, str], head) -> None:
    case = CASES[case_name]
    value, gradients = loss_and_gradients(head, case)
    sizes = mx.stack([mx.max(mx.abs(gradient)) for gradient in gradients.values()])
    assert mx.isfinite(value).item(), (case_name, row)
    for key, size in zip(gradients, sizes.tolist(), strict=True):
        assert size == size, (case_name, row, key)
        assert size < float("inf"), (case_name, row, key)
        if not is_dead(key, row, case):
            assert size > 0, (case_name, row, key)


# Activations that are never negative, so that relu(-x) in the differential FFN is always 0.
NOT_NEGATIVE = {"relu", "relu_k", "sigmoid", "hard_sigmoid", "elu_plus_one", "thresh_max"}


def is_dead(key: str, row: dict[str, str], case) -> bool:
    """Whether a parameter cannot change the loss, by arithmetic."""
    if key in case.dead or (key == "projection.ffn.down.bias" and "output.bias" in case.dead):
        return True  # a constant added to all scores of a softmax (with a linear layer in between)
    if key.endswith("blocks.0.dense.bias"):
        return row["normalization_type"] == "batch_norm"  # which subtracts the mean of the batch
    if key == "pooling.score.bias":
        return row["pooling_type"] == "attention"  # a softmax over the tokens
    if ".Wh" in key:
        return row["pooling_type"] in ("cls", "pooler")  # the first state has no past
    return "ffn.negative" in key and row["ffn_type"] == "differential" and row["activation"] in NOT_NEGATIVE


@pytest.mark.parametrize("head", HEAD_CASES)
@pytest.mark.parametrize("part", range(4))
def test_every_head_with_every_option(head, part):
    rows = rows_of(head)
    for name, values in FACTORS.items():
        assert {row[name] for row in rows} == set(values)
    for row in rows[part::4]:
        check(HEAD_CASES[head], row)


@pytest.mark.parametrize("case_name", ["token", "multiclass", "choice"])
@pytest.mark.parametrize(("factor", "value"), [(factor, value) for factor in FACTORS for value in FACTORS[factor]])
def test_padding_with_every_option(case_name, factor, value):
    """What stands at padding changes nothing, training or not; an empty row and float16 stay finite."""
    case = CASES[case_name]
    row = {name: values[0] for name, values in FACTORS.items()} | {factor: value}
    hidden, mask = case.inputs()
    real = mx.expand_dims(mask, -1) == 1
    shown = real if case_name == "token" else mx.array(True)
    head = build(case, seed=1, scale=0.1, **options(row))
    for training in (False, True):
        head.train(training)
        mx.random.seed(0)
        wanted = mx.where(shown, head(hidden, mask)["logits"], 0)
        for junk in (-30.0, float("nan")):
            mx.random.seed(0)
            got = mx.where(shown, head(mx.where(real, hidden, junk), mask)["logits"], 0)
            assert mx.allclose(got, wanted, atol=1e-5).item(), (training, junk)
    head.eval()
    mask[0] = 0
    for dtype in (mx.float32, mx.float16):
        head.update(tree_map(lambda array, dtype=dtype: array.astype(dtype), head.parameters()))
        assert mx.all(mx.isfinite(head((20 * hidden).astype(dtype), mask)["logits"])).item(), dtype


PAIRWISE = pairwise_rows()


def test_the_pairwise_design_is_complete():
    pairs = {pair for row in PAIRWISE for pair in itertools.combinations([(name, row[name]) for name in FACTORS], 2)}
    sizes = [len(values) for values in FACTORS.values()]
    assert len(pairs) == sum(a * b for a, b in itertools.combinations(sizes, 2))


@pytest.mark.parametrize("part", range(len(PAIRWISE) // ROWS_PER_TEST + 1))
def test_every_pair_of_options(part):
    for row in PAIRWISE[part * ROWS_PER_TEST : (part + 1) * ROWS_PER_TEST]:
        check("multiclass", row)
