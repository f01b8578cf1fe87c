"""Every head with every pooling, normalisation, activation, attention and FFN: it builds, runs, and learns everywhere.

The full product has millions of rows. Each head meets each option once (one factor value per row, all factors moving),
and a covering design on one head meets every pair of options.
"""

import itertools

import mlx.core as mx
import pytest
from head_cases import CASES, build, loss_and_gradients, stable_seed

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


def check(case_name: str, row: dict[str, str]) -> None:
    case = CASES[case_name]
    value, gradients = loss_and_gradients(build(case, seed=1, scale=0.1, **options(row)), case)
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


PAIRWISE = pairwise_rows()


def test_the_pairwise_design_is_complete():
    pairs = {pair for row in PAIRWISE for pair in itertools.combinations([(name, row[name]) for name in FACTORS], 2)}
    sizes = [len(values) for values in FACTORS.values()]
    assert len(pairs) == sum(a * b for a, b in itertools.combinations(sizes, 2))


@pytest.mark.parametrize("part", range(len(PAIRWISE) // ROWS_PER_TEST + 1))
def test_every_pair_of_options(part):
    for row in PAIRWISE[part * ROWS_PER_TEST : (part + 1) * ROWS_PER_TEST]:
        check("multiclass", row)
