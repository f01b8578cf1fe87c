"""The loop on a toy task: what it computes, what it keeps, what it refuses."""

import dataclasses
import json
import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_bert.data.collate import Collator, tokenize_examples
from mlx_bert.model import BertWithHead
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback, EpochTable
from mlx_bert.training.checkpoints import list_checkpoints
from mlx_bert.training.freezing import apply_freeze, parameter_counts, phases_of
from mlx_bert.training.objective import HeadObjective, loss_weight
from mlx_bert.training.optimizers import GroupedOptimizer, ParameterGroup
from mlx_bert.training.outcome import NonFiniteLoss
from mlx_bert.training.step import TrainingStep, flat_parameters
from mlx_bert.training.trainer import Trainer


def arguments(path, **changes):
    base = {"output_dir": str(path), "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "progress": False}
    return TrainingArgs(**{**base, **changes})


def weights(model):
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def gradient_descent(toy, model, batches, dtype="float32", **settings):
    """One update by plain gradient descent, so that a difference of weights is a difference of gradients."""
    apply_freeze(model, "none")
    model.train()
    parameters = flat_parameters(model)
    groups = [ParameterGroup("all", "adamw", 1.0, 0.0, tuple(parameters))]
    optimizer = GroupedOptimizer(groups, parameters)
    optimizer.apply = lambda gradients, own: {name: own[name] - gradients[name] for name in gradients}
    args = TrainingArgs(max_grad_norm=0.0, dtype=dtype, **settings)
    step = TrainingStep(model, HeadObjective(), optimizer, args)
    outputs = step(batches, list(range(len(batches))))
    step.evaluate(*outputs)
    return weights(model)


@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 3.0]])
def test_accumulated_batches_are_one_big_batch(toy, class_weights):
    examples = tokenize_examples(toy.examples(14), toy.tokenizer)
    examples[3]["labels"] = -100  # an ignored example counts in neither
    collate = Collator(toy.tokenizer.pad_id)
    options = {"class_weights": class_weights} if class_weights else {}
    whole = gradient_descent(toy, toy.model(dropout=0.0, **options), [collate(examples)])
    parts = [collate(part) for part in (examples[:5], examples[5:12], examples[12:])]
    summed = gradient_descent(toy, toy.model(dropout=0.0, **options), parts)
    before = weights(toy.model(dropout=0.0, **options))
    for name, array in whole.items():
        np.testing.assert_allclose(summed[name], array, atol=3e-6, err_msg=name, equal_nan=False)
    assert max(np.abs(whole[name] - before[name]).max() for name in whole) > 1e-2


def test_what_a_loss_is_a_mean_over(toy):
    plain, weighted = toy.model().head, toy.model(class_weights=[0.5, 1.0, 3.0]).head
    labels = mx.array([0, 2, -100, 2])
    assert loss_weight(plain, labels).item() == 3
    assert loss_weight(weighted, labels).item() == pytest.approx(6.5)
    assert loss_weight(plain, {"a": mx.zeros((5,)), "b": mx.zeros((5, 2))}).item() == 5


def test_compiled_and_eager_updates_agree(toy):
    batch = Collator(toy.tokenizer.pad_id)(tokenize_examples(toy.examples(6), toy.tokenizer))
    model = toy.model()
    model.freeze_bert()
    eager, compiled = (_head_update(toy, batch, compile=flag, ema_decay=0.9) for flag in (False, True))
    for name, array in eager.items():
        np.testing.assert_allclose(compiled[name], array, atol=1e-6, err_msg=name)


def _head_update(toy, batch, **settings):
    model = toy.model(hidden_sizes=[8])
    model.freeze_bert()
    model.train()
    parameters = flat_parameters(model)
    optimizer = GroupedOptimizer([ParameterGroup("all", "adamw", 1e-2, 0.01, tuple(parameters))], parameters)
    step = TrainingStep(model, HeadObjective(), optimizer, TrainingArgs(**settings))
    for seed in range(3):
        step.evaluate(*step([batch], [seed]))
    step.evaluate(*step([batch, batch], [3, 4]))
    return {**weights(model), **{f"average {name}": np.array(array) for name, array in step.average.items()}}


def test_half_precision_to_begin_with_is_said(toy, tmp_path, caplog):
    for dtype, told in ((mx.float32, ""), (mx.float16, "the weights come in float16")):
        model = toy.model()
        model.set_dtype(dtype)
        Trainer(model, arguments(tmp_path), toy.examples(4), tokenizer=toy.tokenizer)
        assert told in caplog.text
        assert bool(told) == bool(caplog.text)
        assert {array.dtype for _, array in tree_flatten(model.parameters())} == {mx.float32}


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(toy):
    collate = Collator(toy.tokenizer.pad_id)
    batch = collate(tokenize_examples(toy.examples(8), toy.tokenizer))
    full = gradient_descent(toy, toy.model(dropout=0.0), [batch])
    half = gradient_descent(toy, toy.model(dropout=0.0), [batch], dtype="bfloat16")
    assert all(array.dtype == np.float32 for array in half.values())
    difference = max(np.abs(full[name] - half[name]).max() for name in full)
    assert 1e-5 < difference < 0.05


def test_the_toy_task_is_learnt_and_the_best_model_kept(toy, tmp_path, capsys):
    args = arguments(tmp_path / "run", epochs=8, learning_rate=3e-3, head_learning_rate=3e-3, patience=8)
    trainer = Trainer(
        toy.model(), args, toy.examples(90), toy.examples(45, 1), toy.tokenizer, callbacks=[EpochTable(("accuracy",))]
    )
    result = trainer.train()
    assert result.metrics["accuracy"] > 0.9
    assert result.steps == 8 * 12
    epochs = result.history["epochs"]
    best = max(range(8), key=lambda n: (epochs[n]["eval_accuracy"], -n))
    assert (epochs[best]["step"], epochs[best]["is_best"]) == (result.best_step, True)
    assert json.loads((tmp_path / "run/history.json").read_text()) == result.history
    assert [line.endswith("best") for line in capsys.readouterr().out.splitlines()[1:]].count(True) >= 1
    # the model has the best weights, and the saved folder is the model, bit for bit
    assert trainer.evaluate() == result.metrics
    loaded = BertWithHead.from_pretrained(tmp_path / "run/best_model")
    assert_same(weights(loaded), weights(trainer.model))
    assert loaded.id2label == dict(enumerate(toy.labels.names))
    metadata = json.loads((tmp_path / "run/best_model/metadata.json").read_text())
    assert (metadata["step"], metadata["metrics"]) == (result.best_step, result.metrics)
    present = {path.name for path in (tmp_path / "run").iterdir()}
    assert present == {"best_model", "final_model", "history.json", "training_args.json", "checkpoint_epoch_8"}


def test_early_stopping_and_min_delta(toy, tmp_path):
    args = arguments(tmp_path / "run", epochs=9, learning_rate=0.0, patience=2, metric="loss", save_every="no")
    result = Trainer(toy.model(), args, toy.examples(12), toy.examples(9, 1), toy.tokenizer).train()
    assert result.stopped_early
    assert len(result.history["epochs"]) == 3  # one that sets the mark and two that don't improve
    assert result.best_step == 2
    args = arguments(tmp_path / "other", epochs=4, patience=2, metric="loss", min_delta=10.0, save_every="no")
    result = Trainer(toy.model(), args, toy.examples(12), toy.examples(9, 1), toy.tokenizer).train()
    assert len(result.history["epochs"]) == 3
    losses = [record["eval_loss"] for record in result.history["epochs"]]
    assert result.metrics["loss"] == min(losses)  # any strict improvement is kept, min_delta is for patience alone


class NotANumberFirst(HeadObjective):
    """Metrics of which the first value is no number."""

    def __init__(self, values):
        self.values = iter(values)

    def metrics(self, model, outputs, labels):
        return {"quality": next(self.values)}


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_no_number_is_worse_than_any_number(toy, tmp_path, bad):
    objective = NotANumberFirst([bad, 0.1, 0.2, bad, 0.3, 0.4])
    args = arguments(tmp_path / "run", epochs=6, patience=2, metric="quality", save_every="no")
    result = Trainer(toy.model(), args, toy.examples(8), toy.examples(3, 1), toy.tokenizer, objective=objective).train()
    assert (result.steps, result.best_step, result.stopped_early) == (6, 6, False)
    objective = NotANumberFirst([0.5, bad, bad])
    args = arguments(tmp_path / "bad", epochs=6, patience=2, metric="quality", save_every="no")
    result = Trainer(toy.model(), args, toy.examples(8), toy.examples(3, 1), toy.tokenizer, objective=objective).train()
    assert (result.steps, result.best_step, result.stopped_early) == (3, 1, True)


def test_patience_also_counts_within_an_epoch(toy, tmp_path):
    args = arguments(tmp_path / "run", learning_rate=0.0, patience=1, eval_every=1, metric="loss", save_every="no")
    result = Trainer(toy.model(), args, toy.examples(40), toy.examples(9, 1), toy.tokenizer).train()
    assert (result.steps, result.stopped_early) == (2, True)


def test_the_same_seed_gives_the_same_run(toy, tmp_path):
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        args = arguments(tmp_path / str(number), epochs=1, seed=seed, save_every="no")
        trainer = Trainer(toy.model(), args, toy.examples(20), tokenizer=toy.tokenizer)
        trainer.train()
        runs.append(weights(trainer.model))
    assert_same(runs[0], runs[1])
    assert any((runs[0][name] != runs[2][name]).any() for name in runs[0])


class StopAt(Callback):
    """Asks to stop after some updates, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            trainer._stop = True


@pytest.mark.parametrize(
    ("stop", "name", "settings"),
    [
        (4, "4", {"ema_decay": 0.9, "gradient_accumulation_steps": 2}),  # within the second epoch
        (3, "epoch_1", {"freeze_epochs": 1, "optimizer": "lion", "schedule": "linear"}),  # where the head's phase ends
        (7, "7", {"freeze_epochs": 1, "gradual_unfreezing": 1, "eval_every": 2}),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(toy, tmp_path, stop, name, settings):
    settings = {"epochs": 2, "metric": "loss", "max_length": 16, **settings}
    size = 40 if "gradient_accumulation_steps" in settings else 24

    def trainer(name, callbacks=()):
        args = arguments(tmp_path / name, **settings)
        return Trainer(toy.model(), args, toy.examples(size), toy.examples(9, 1), toy.tokenizer, callbacks=callbacks)

    whole = trainer("whole")
    expected = whole.train()
    with pytest.raises(KeyboardInterrupt, match=f"Resume from .*checkpoint_{name} "):
        trainer("parts", [StopAt(stop)]).train()
    second = trainer("parts")
    result = second.train(resume=True)
    assert_same(weights(second.model), weights(whole.model))
    assert (result.metrics, result.best_step, result.steps) == (expected.metrics, expected.best_step, expected.steps)
    assert _numbers(result.history["epochs"]) == _numbers(expected.history["epochs"])
    assert_same(
        *(weights(BertWithHead.from_pretrained(tmp_path / name / "final_model")) for name in ("whole", "parts"))
    )


def _numbers(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_what_a_resumed_run_refuses(toy, tmp_path):
    args = arguments(tmp_path / "run", epochs=1)
    Trainer(toy.model(), args, toy.examples(16), tokenizer=toy.tokenizer).train()
    with pytest.raises(FileExistsError, match="has results of another run"):
        Trainer(toy.model(), args, toy.examples(16), tokenizer=toy.tokenizer).train()
    with pytest.raises(ValueError, match=r"other settings: learning_rate was 0\.001 and is 0\.5"):
        Trainer(
            toy.model(), dataclasses.replace(args, learning_rate=0.5), toy.examples(16), tokenizer=toy.tokenizer
        ).train(resume=True)
    with pytest.raises(ValueError, match="other training data"):
        Trainer(toy.model(), args, toy.examples(16, 5), tokenizer=toy.tokenizer).train(resume=True)
    with pytest.raises(ValueError, match=r"with other head: config\.hidden_sizes was \[16\] and is \[4\]"):
        Trainer(toy.model(hidden_sizes=[4]), args, toy.examples(16), tokenizer=toy.tokenizer).train(resume=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Trainer(toy.model(), args, toy.examples(16), tokenizer=toy.tokenizer).train(resume=tmp_path / "nothing")
    args = arguments(tmp_path / "done", epochs=1)
    Trainer(toy.model(), args, toy.examples(16), toy.examples(9, 1), toy.tokenizer).train()
    with pytest.raises(FileExistsError, match=r"the run in .*done is complete"):
        Trainer(toy.model(), args, toy.examples(16), toy.examples(9, 1), toy.tokenizer).train(resume=True)


def test_checkpoints_by_updates_and_how_many_are_kept(toy, tmp_path):
    args = arguments(tmp_path / "run", save_every=1, keep_checkpoints=2, epochs=1)
    Trainer(toy.model(), args, toy.examples(32), tokenizer=toy.tokenizer).train()
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [3, 4]
    assert {path.name for path in (tmp_path / "run/checkpoint_4").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "metadata.json",
    }


def test_a_bad_batch_is_named(toy, tmp_path):
    examples = toy.examples(16)
    examples[5] = {**examples[5], "labels": 7, "line": 99}  # a class that the head does not have
    args = arguments(tmp_path / "run", log_every=1)
    with pytest.raises(NonFiniteLoss, match=r"the loss of update \d \(epoch 1\) is nan\. Its batch: .*line 99"):
        Trainer(toy.model(), args, examples, tokenizer=toy.tokenizer).train()
    assert not list_checkpoints(tmp_path / "run")


def test_a_bad_gradient_is_named(toy, tmp_path):
    model = toy.model()
    model.bert.encoder.embeddings.word.weight = mx.full((model.bert.config.vocab_size, 32), 3e38)
    with pytest.raises(NonFiniteLoss, match="of update 1 "):
        Trainer(model, arguments(tmp_path / "run"), toy.examples(8), tokenizer=toy.tokenizer).train()


def test_freezing_policies(toy):
    model = toy.model()
    names = lambda: {name for name, _ in tree_flatten(model.bert.trainable_parameters())}  # noqa: E731
    assert apply_freeze(model, "backbone")
    assert not names()
    assert not apply_freeze(model, "1")
    assert names()
    assert all(name.startswith("encoder.layers.1.") for name in names())
    assert not apply_freeze(model, "none")
    assert any("embeddings" in name for name in names())
    assert not any("pooler" in name for name in names())
    trainable, total = parameter_counts(model)
    assert 0 < trainable < total == sum(array.size for array in weights(model).values())


def test_phases():
    args = TrainingArgs(epochs=4, freeze="1", freeze_epochs=2, gradual_unfreezing=2)
    phases = [(phase.name, phase.epochs, phase.freeze) for phase in phases_of(args, 6)]
    assert phases == [("head", 2, "backbone"), ("top 1", 1, "5"), ("top 2", 1, "4"), ("main", 4, "1")]
    with pytest.raises(ValueError, match="expected freeze of at most 6"):
        phases_of(TrainingArgs(freeze="7"), 6)
    with pytest.raises(ValueError, match="expected a model with an encoder"):
        phases_of(TrainingArgs(freeze="1"), None)


def test_frozen_parameters_do_not_move(toy, tmp_path):
    for freeze, cached in (("backbone", True), ("1", False)):
        model = toy.model()
        before = weights(model)
        args = arguments(tmp_path / freeze, freeze=freeze, epochs=1, save_every="no")
        trainer = Trainer(model, args, toy.examples(16), tokenizer=toy.tokenizer)
        trainer.train()
        assert trainer.feed.is_cached is cached
        after = weights(model)
        moved = {name for name in before if (before[name] != after[name]).any()}
        assert "head.output.weight" in moved
        allowed = ("head.",) if freeze == "backbone" else ("head.", "bert.encoder.layers.1.")
        assert all(name.startswith(allowed) for name in moved)


def test_cached_encoder_outputs_train_the_same_head(toy, tmp_path):
    results = []
    for cached in (True, False):
        args = arguments(
            tmp_path / str(cached), freeze="backbone", cache_encoder=cached, save_every="no", metric="loss"
        )
        trainer = Trainer(toy.model(), args, toy.examples(30), toy.examples(9, 1), toy.tokenizer)
        results.append((trainer.train(), weights(trainer.model)))
        assert trainer.feed.is_cached is cached
    (first, head), (second, other) = results
    assert first.metrics["loss"] == pytest.approx(second.metrics["loss"], abs=1e-5)
    for name in head:
        np.testing.assert_allclose(head[name], other[name], atol=1e-4, err_msg=name)


def test_nothing_is_cached_above_the_limit(toy, tmp_path):
    args = arguments(tmp_path / "run", freeze="backbone", cache_limit_mb=1, epochs=1, save_every="no")
    for different in (2400, 3):  # texts of 4 tokens and 32 floats: 1.2 MB, or 2 kB
        numbers = [number % different for number in range(2400)]
        ids = [np.array([2, 4 + number % 20, 4 + number // 20 % 20, 4 + number // 400]) for number in numbers]
        examples = [{"input_ids": row, "labels": row[1] % 3} for row in ids]
        trainer = Trainer(toy.model(), args, examples, tokenizer=toy.tokenizer)
        apply_freeze(trainer.model, "backbone")
        trainer.feed.cache(trainer.model.bert)
        assert trainer.feed.is_cached == (different == 3)


def test_moving_average_is_what_is_evaluated_and_saved(toy, tmp_path):
    args = arguments(tmp_path / "run", epochs=1, ema_decay=0.5, save_every="no")
    trainer = Trainer(toy.model(), args, toy.examples(16), tokenizer=toy.tokenizer)
    seen = []

    class Watch(Callback):
        def on_step(self, trainer):
            seen.append({name: np.array(array) for name, array in flat_parameters(trainer.model).items()})

    start = weights(trainer.model)
    trainer.callbacks.append(Watch())
    trainer.train()
    final = weights(BertWithHead.from_pretrained(tmp_path / "run/final_model"))
    for name in seen[0]:
        expected = 0.25 * start[name] + 0.25 * seen[0][name] + 0.5 * seen[1][name]
        np.testing.assert_allclose(final[name], expected, atol=1e-6, err_msg=name)
    assert_same(final, weights(trainer.model))


def test_settings_and_data_that_do_not_fit(toy, tmp_path):
    args = arguments(tmp_path / "run")
    with pytest.raises(ValueError, match="expected at least one example in train_examples"):
        Trainer(toy.model(), args, [], tokenizer=toy.tokenizer)
    with pytest.raises(ValueError, match="expected input_ids, or texts and a tokenizer"):
        Trainer(toy.model(), args, toy.examples(3))
    with pytest.raises(ValueError, match="expected 'labels' in every example of train_examples but example 0 has none"):
        Trainer(toy.model(), args, [{"text": "a"}], tokenizer=toy.tokenizer)
    with pytest.raises(ValueError, match="expected eval_examples with patience, metric or best_heads"):
        Trainer(toy.model(), arguments(tmp_path / "run", patience=1), toy.examples(3), tokenizer=toy.tokenizer)
    trainer = Trainer(toy.model(), arguments(tmp_path / "m", metric="bleu", epochs=1), toy.examples(8), toy.examples(3),
                      toy.tokenizer)  # fmt: skip
    with pytest.raises(ValueError, match="expected metric to be one of loss, accuracy"):
        trainer.train()
    balanced = [{**example, "labels": [0, 1]} for example in toy.examples(3)]
    with pytest.raises(ValueError, match="expected one class per example with sampling 'class_balanced'"):
        Trainer(toy.model(), arguments(tmp_path / "run", sampling="class_balanced"), balanced, tokenizer=toy.tokenizer)


def test_evaluation_by_updates_and_class_balanced_sampling(toy, tmp_path):
    args = arguments(tmp_path / "run", epochs=2, eval_every=4, sampling="class_balanced", save_every="no")
    result = Trainer(toy.model(), args, toy.examples(40), toy.examples(9, 1), toy.tokenizer).train()
    epochs = result.history["epochs"]
    assert [record["step"] for record in epochs] == [4, 5, 8, 10]
    assert ["eval_loss" in record for record in epochs] == [True, False, True, True]  # the end is always measured
