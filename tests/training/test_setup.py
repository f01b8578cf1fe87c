"""What a resumed run must have alike: the head, the objective's own settings, the sampler, the collator."""

import functools

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.data.collate import Collator, token_count, tokenize_examples
from mlx_bert.data.samplers import LengthBucketSampler
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.multi_task import TaskBatches
from mlx_bert.training.objective import HeadObjective, regularization
from mlx_bert.training.setup import describe, differences
from mlx_bert.training.trainer import Trainer


class Weighted(HeadObjective):
    def __init__(self, temperature, note="", **weights):
        self.temperature, self.weights, self.note = temperature, weights, note


class Told(Weighted):
    def settings(self):
        return {"temperature": self.temperature}


def run(toy, path, objective=None, resume=False, **parts):
    args = TrainingArgs(output_dir=str(path), epochs=1, batch_size=8, progress=False, log_every=1)
    examples = tokenize_examples(toy.examples(24), toy.tokenizer)
    own = {"tokenizer": toy.tokenizer, "objective": objective, **parts}
    return Trainer(toy.model(dropout=0.0), args, examples, **own).train(resume)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            {"objective": Weighted(0.1)},
            {"objective": Weighted(0.2)},
            r"other objective: temperature was 0\.1 and is",
        ),
        ({"objective": Weighted(1, a=2.0)}, {"objective": Weighted(1, a=3.0)}, r"objective: weights\.a was 2\.0"),
        ({"objective": Weighted(1)}, {"objective": Told(1)}, "objective: class was 'Weighted' and is 'Told'"),
        ({"collate": Collator(0)}, {"collate": Collator(1)}, "other collator: pad_id was 0 and is 1"),
        ({"sampler": 1}, {"sampler": 2}, "other sampler: seed was 1 and is 2"),
    ],
)
def test_a_resumed_run_with_other_parts_is_refused(toy, tmp_path, before, now, message):
    lengths = [token_count(example) for example in tokenize_examples(toy.examples(24), toy.tokenizer)]
    for parts in (before, now):
        if "sampler" in parts:
            parts["sampler"] = LengthBucketSampler(lengths, 8, seed=parts["sampler"])
    run(toy, tmp_path, **before)
    with pytest.raises(ValueError, match=message):
        run(toy, tmp_path, resume=True, **now)
    run(toy, tmp_path, resume=True, **before)


def test_an_objective_may_say_itself_what_counts(toy, tmp_path):
    run(toy, tmp_path, Told(0.5, note="a"))
    run(toy, tmp_path, Told(0.5, note="b"), resume=True)
    with pytest.raises(ValueError, match=r"temperature was 0\.5 and is 0\.6"):
        run(toy, tmp_path, Told(0.6), resume=True)


def test_descriptions():
    def sampler(strategy, seed=1):
        return TaskBatches(["a"] * 30 + ["b"] * 5, range(1, 36), 4, strategy, seed)

    assert describe(sampler("sqrt")) == describe(sampler("sqrt"))
    assert differences(describe(sampler("sqrt")), describe(sampler("equal")))
    assert differences(describe(sampler("sqrt")), describe(sampler("sqrt", 2))) == ["_sampler.seed was 1 and is 2"]
    assert describe(np.arange(3)) != describe(np.arange(1, 4))
    assert describe(mx.array([1.0], dtype=mx.bfloat16)) == describe(np.array([1.0], np.float32))
    assert describe({1: (True, None, functools.reduce), "s": {2, 1}}) == {"1": [True, None, "reduce"], "s": [1, 2]}
    assert describe(list(range(100))) != describe([*range(99), 0])
    assert differences({"a": float("nan")}, {"a": float("nan")}) == []
    assert describe(np.float32(0.5)) == 0.5


# --- the penalties of a head's blocks ---------------------------------------------------------------------------------


def test_the_penalties_of_blocks_are_part_of_the_training_loss_only(toy):
    options = {"use_ffn": True, "ffn_type": "orthoglu", "normalization_type": "band_rms"}
    model = toy.model(dropout=0.0, **options)
    norms = [module for _, module in model.head.named_modules() if type(module).__name__ == "BandRMS"]
    norms[0].band = mx.array([2.0])
    batch = Collator(0)(tokenize_examples(toy.examples(8), toy.tokenizer))
    objective = HeadObjective()
    outputs = objective.forward(model.eval(), batch)
    plain, weight = objective.loss(model, outputs, batch)
    model.train()
    full, same_weight = objective.loss(model, outputs, batch)
    (ffn,) = [module for _, module in model.head.named_modules() if type(module).__name__ == "OrthoGLU"]
    ffn.down.weight = ffn.down.weight * 2  # far from orthonormal
    penalty = ffn.regularization_loss().item() + norms[0].regularization_loss().item()
    assert penalty > 5e-4
    assert weight.item() == same_weight.item()
    assert full.item() - plain.item() == pytest.approx(4e-5, abs=2e-6)  # 1e-5 * 2^2, the FFN was orthonormal
    assert objective.loss(model, outputs, batch)[0].item() == pytest.approx(plain.item() + penalty, rel=1e-5)
    assert regularization(toy.model().train()) == 0
