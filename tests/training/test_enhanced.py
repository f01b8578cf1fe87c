import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from mlx_bert.data.collate import Collator, tokenize_examples
from mlx_bert.model import BertWithHead
from mlx_bert.training.enhanced import EnhancedTrainer, examples_of
from mlx_bert.training.lora import lora_layers


def weights(model):
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


@pytest.fixture(scope="module")
def data(toy):
    return [{key: example[key] for key in ("input_ids", "labels")}
            for example in tokenize_examples(toy.examples(24), toy.tokenizer)]  # fmt: skip


def test_defaults():
    args = EnhancedTrainer(None, "x").args
    assert (args.epochs, args.learning_rate, args.head_learning_rate, args.weight_decay) == (3, 2e-5, 2e-5, 0.01)
    assert (args.warmup_steps, args.schedule, args.optimizer) == (100, "cosine", "adamw")
    assert (args.eval_every, args.save_every) == ("50", "100")
    assert (args.gradient_accumulation_steps, args.max_grad_norm) == (1, 1.0)
    with pytest.raises(ValueError, match="unknown settings warmup"):
        EnhancedTrainer(None, "x", warmup=3)


def test_the_folders_and_the_history(toy, data, tmp_path):
    settings = {"batch_size": 8, "eval_steps": 2, "save_steps": 3, "learning_rate": 1e-3, "warmup_steps": 2}
    trainer = EnhancedTrainer(toy.model(), tmp_path / "run", tokenizer=toy.tokenizer, progress=False, **settings)
    result = trainer.train(data, data[:9])
    present = {path.name for path in (tmp_path / "run").iterdir()}
    assert present == {"checkpoint_9", "best_model", "final_model", "training_history.json", "training_args.json"}
    files = {path.name for path in (tmp_path / "run/checkpoint_9").iterdir()}
    assert files == {"model.safetensors", "optimizer.safetensors", "metadata.json"}
    for model in ("best_model", "final_model"):
        assert all((tmp_path / "run" / model / name).is_file() for name in ("optimizer.safetensors", "metadata.json"))
        assert next((tmp_path / "run" / model).rglob("model.safetensors"))
    metadata = json.loads((tmp_path / "run/checkpoint_9/metadata.json").read_text())
    assert metadata["step"] == 9
    assert {"best_metrics", "learning_rate"} <= metadata.keys()
    assert metadata["state"]["history"]["epochs"]
    history = json.loads((tmp_path / "run/training_history.json").read_text())
    assert [record["step"] for record in history["epochs"] if "eval_loss" in record] == [2, 4, 6, 8, 9]
    best = json.loads((tmp_path / "run/best_model/metadata.json").read_text())
    final = json.loads((tmp_path / "run/final_model/metadata.json").read_text())
    assert (best["step"], best["metrics"], best["best_metrics"]) == (result.best_step, result.metrics, result.metrics)
    assert best["history"]["epochs"][-1]["step"] == result.best_step < 9
    assert best["learning_rate"] == best["history"]["epochs"][-1]["learning_rate"] > 0
    assert (final["step"], final["history"], final["learning_rate"]) == (
        9,
        history,
        history["epochs"][-1]["learning_rate"],
    )
    states = [load_file(tmp_path / "run" / name / "optimizer.safetensors") for name in ("checkpoint_9", "final_model")]
    assert all((states[1][name] == array).all() for name, array in states[0].items())
    loaded = BertWithHead.from_pretrained(tmp_path / "run/best_model")
    np.testing.assert_array_equal(loaded.head.output.weight, trainer.model.head.output.weight)
    assert trainer.evaluate(data[:9]) == pytest.approx(result.metrics)


def test_a_run_of_few_updates_is_measured_at_its_end(toy, data, tmp_path):
    settings = {"num_epochs": 1, "progress": False, "save_optimizer": False}
    result = EnhancedTrainer(toy.model(), tmp_path / "run", **settings).train(data, data[:9])
    assert (result.best_step, result.metrics.keys() >= {"loss", "accuracy"}) == (2, True)
    assert (tmp_path / "run/best_model/metadata.json").is_file()
    assert not list(tmp_path.rglob("optimizer.safetensors"))


def test_what_is_frozen_stays(toy, data, tmp_path):
    model = toy.model()
    model.freeze_bert(num_layers=1)
    before = weights(model)
    EnhancedTrainer(model, tmp_path / "run", num_epochs=1, warmup_steps=0, learning_rate=1e-2, progress=False).train(
        data
    )
    after = weights(model)
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert any(name.startswith("bert.encoder.layers.1.") for name in moved)
    assert all(name.startswith(("head.", "bert.encoder.layers.1.")) for name in moved)


def test_examples_batches_and_arrays_are_the_same_data(toy, data, tmp_path):
    batches = [Collator(0)(data[start : start + 6]) for start in range(0, 24, 6)]
    longest = max(len(example["input_ids"]) for example in data)
    ids = np.zeros((24, longest), int)
    for row, example in zip(ids, data, strict=True):
        row[: len(example["input_ids"])] = example["input_ids"]
    arrays = {"input_ids": mx.array(ids), "attention_mask": mx.array(ids != 0),
              "labels": mx.array([example["labels"] for example in data])}  # fmt: skip
    for other in (batches, arrays, iter(data)):
        for first, second in zip(data, examples_of(other), strict=True):
            assert second.keys() == {"input_ids", "labels"}
            np.testing.assert_array_equal(second["input_ids"], first["input_ids"])
            assert int(second["labels"]) == first["labels"]


def test_labels_of_tokens_lose_their_padding_too():
    batch = {
        "input_ids": [[5, 6, 0], [0, 7, 8]],
        "attention_mask": [[1, 1, 0], [0, 1, 1]],
        "labels": [[1, 2, -100], [-100, 3, 4]],
    }
    first, second = examples_of([batch])
    assert (first["input_ids"].tolist(), first["labels"].tolist()) == ([5, 6], [1, 2])
    assert (second["input_ids"].tolist(), second["labels"].tolist()) == ([7, 8], [3, 4])


def test_spans_count_from_the_first_real_token(toy):
    head = toy.model(head_type="question_answering", num_labels=2).head
    batch = {"input_ids": [[5, 6, 0], [0, 7, 8]], "attention_mask": [[1, 1, 0], [0, 1, 1]], "labels": [[0, 1], [1, 2]]}
    assert [example["labels"].tolist() for example in examples_of([batch], head)] == [[0, 1], [0, 1]]


def test_data_that_are_neither():
    with pytest.raises(ValueError, match="expected dicts with input_ids or text but item 0 is list"):
        examples_of([[1, 2]])
    with pytest.raises(ValueError, match=r"item 0 is \['labels'\]"):
        examples_of([{"labels": 1}])
    with pytest.raises(ValueError, match="but got only padding"):
        examples_of([{"input_ids": [1], "attention_mask": [0]}])


def test_resume(toy, data, tmp_path):
    def trainer(name, **more):
        return EnhancedTrainer(toy.model(), tmp_path / name, num_epochs=2, batch_size=8, save_steps=4, warmup_steps=1,
                               learning_rate=1e-3, progress=False, **more)  # fmt: skip

    whole = trainer("whole")
    whole.train(data)
    cut = trainer("cut")
    cut.train(data)
    again = trainer("cut")
    again.train(data, resume=True)  # from checkpoint_4 of 6 updates
    for name, array in weights(whole.model).items():
        np.testing.assert_array_equal(weights(again.model)[name], array, err_msg=name)


def test_evaluating_changes_nothing(toy, data, tmp_path):
    model = toy.model()
    trainer = EnhancedTrainer(model, tmp_path / "run", num_epochs=1, progress=False, lora="*.qkv", freeze="none")
    before = trainer.evaluate(data[:9])
    assert lora_layers(model) == {}  # adapters come with the training
    result = trainer.train(data, data[:9])
    assert lora_layers(model)
    assert trainer.evaluate(data[:9]) == pytest.approx(result.metrics)
    assert before.keys() == result.metrics.keys()
    with pytest.raises(ValueError, match="expected at least one example"):
        trainer.evaluate([])
