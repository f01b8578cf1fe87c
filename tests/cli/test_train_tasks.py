"""``mlx-bert train --task multi_task`` and ``mtl``: what lies in the folder and what can be done with it afterwards."""

import mlx.core as mx
import numpy as np
import pytest
from cli_cases import MOODS, THINGS, labelled, lines, predictions, report

from mlx_bert.__main__ import main
from mlx_bert.checkpoint import read_json
from mlx_bert.mtl import SentenceTransformerMTL
from mlx_bert.multihead import MultiheadClassifier


def test_a_classifier_knows_the_settings_it_was_trained_with(command, tmp_path):
    data, output = lines(tmp_path / "d.jsonl", labelled(24)), tmp_path / "run"
    options = ("--weight-decay", "0.2", "--warmup-ratio", "0.3", "--freeze-epochs", "1", "--patience", "2",
               "--min-delta", "0.01", "--max-grad-norm", "0.5", "--gradient-accumulation-steps", "2", "--freeze", "1",
               "--eval-size", "0.25", "--metric", "f1", "--epochs", "2", "--seed", "7")  # fmt: skip
    command("train", "--task", "multi_task", "--train", data, "--tasks", "mood", "--output", output, *options)
    found = MultiheadClassifier().load(output / "best_model")
    training, encoder, evaluation = found.config.training, found.config.encoder, found.config.eval
    assert (training.weight_decay, training.warmup_ratio, training.max_grad_norm) == (0.2, 0.3, 0.5)
    assert (training.gradient_accumulation_steps, training.val_size, training.test_size) == (2, 0.25, 0.0)
    assert (training.epochs, training.seed, training.save_every, training.batch_size) == (2, 7, "no", 8)
    assert (encoder.freeze_epochs, encoder.unfreeze_layers) == (1, 1)
    assert (evaluation.patience, evaluation.min_delta, evaluation.metric) == (2, 0.01, "f1")
    found.config.training.output_dir = str(tmp_path / "more")
    found.add_task("thing", [{"text": row["text"], "label": row["thing"]} for row in labelled(24)], progress=False)
    (run,) = (tmp_path / "more").iterdir()
    added, first = read_json(run / "training_args.json"), read_json(output / "training_args.json")
    same = ("weight_decay", "warmup_ratio", "max_grad_norm", "gradient_accumulation_steps", "patience", "min_delta",
            "metric", "seed", "batch_size")  # fmt: skip
    assert {name: added[name] for name in same} == {name: first[name] for name in same}
    assert added["learning_rate"] == 3e-3  # that of the command
    assert added["head_learning_rate"] == 10 * 3e-3  # what its heads learnt with


def spoken(count=24):
    """Words with a tag each, and what they are about."""
    rows = []
    for n in range(count):
        mood, thing = MOODS[n % 3], THINGS[n % 4]
        ask = n % 2 == 0
        rows.append({"tokens": ["the", thing, "is", mood] if ask else ["we", "love", thing],
                     "intent": "describe" if ask else "praise",
                     "tags": ["O", "B-THING", "O", "B-MOOD"] if ask else ["O", "O", "B-THING"]})  # fmt: skip
    return rows


def test_intents_with_tags(command, tmp_path):
    data, output = lines(tmp_path / "d.jsonl", spoken()), tmp_path / "run"
    options = ("--task", "joint", "--train", data, "--eval", data, "--epochs", "8")
    printed = command("train", *options, "--output", output, "--head-learning-rate", "1e-2")
    assert "intents     describe 12, praise 12" in printed
    assert "tags        O 48, B-MOOD 12, B-THING 24" in printed
    assert "eval entity_f1" in printed
    found = report(command, output, data)
    assert found["metrics"]["intent_accuracy"] > 0.9
    assert found["metrics"]["ner_accuracy"] > 0.9
    assert {name: row["support"] for name, row in found["classes"].items()} == {"describe": 12, "praise": 12}
    assert found["entities"]["MOOD"]["support"] == 12
    (row,) = predictions(command, output, "the cat is happy")
    assert (row["intent"], row["words"]) == ("describe", ["the", "cat", "is", "happy"])
    assert row["tags"] == ["O", "B-THING", "O", "B-MOOD"]
    assert "the/O cat/B-THING is/O happy/B-MOOD" in command("predict", "--model", output, "the cat is happy")
    (cut,) = predictions(command, output, "the cat is happy", "--max-length", "4")  # of them two are special
    assert cut["tags"] == ["O", "B-THING", "O", "O"]
    assert report(command, output, data, "--max-length", "4")["entities"]["MOOD"]["recall"] == 0
    assert "expected no --top-k" in command("predict", "--model", output, "a", "--top-k", "2", code=2)
    (half,) = predictions(command, output, "the cat is happy", "--dtype", "bfloat16")
    assert (half["tags"], half["intent"]) == (row["tags"], row["intent"])
    assert half["intent_confidence"] != row["intent_confidence"]


def test_the_options_of_a_joint_run_run_again(command, tmp_path):
    data = lines(tmp_path / "d.jsonl", spoken(12))
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--head-option", "sentence=cls", "--freeze", "backbone", "--eval-size", "0.25", "--epochs", "1")
    command("train", "--task", "joint", "--train", data, "--output", one, *options)
    saved = read_json(one / "train_config.json")
    assert (saved["task"], saved["head-learning-rate"], saved["schedule"]) == ("joint", 1e-3, "cosine_per_epoch")
    assert main(["train", "--config", str(one / "train_config.json"), "--output", str(two)]) == 0
    arrays = [mx.load(str(path / "best_model/joint.safetensors")) for path in (one, two)]
    assert all(np.array_equal(np.array(arrays[0][name]), np.array(arrays[1][name])) for name in arrays[0])
    assert read_json(one / "best_model/joint_config.json")["sentence"] == "cls"


def test_what_intents_with_tags_need(command, tmp_path):
    base = ("train", "--task", "joint", "--output", tmp_path / "run", "--train")
    rows = [{"text": "the cat is happy", "intent": "a", "tags": ["O"] * 4}] * 4
    data = lines(tmp_path / "a.jsonl", rows)
    assert "expected at least 2 intents and a tag besides O" in command(*base, data, code=2)
    data = lines(tmp_path / "b.jsonl", [{**rows[0], "tags": ["O"]}])
    assert "line 1: expected 4 tags, one per token, but got 1" in command(*base, data, code=2)
    data = lines(tmp_path / "c.jsonl", spoken())
    assert "expected --head-option sentence=pooler" in command(*base, data, "--head-option", "size=1", code=2)
    assert "expected no --pooling with --task joint" in command(*base, data, "--pooling", "cls", code=2)


def test_tasks_beside_sentence_embeddings(command, tmp_path):
    rows = [{**row, "mood": "" if n % 5 == 0 else row["mood"]} for n, row in enumerate(labelled(30))]
    data, output = lines(tmp_path / "d.jsonl", rows), tmp_path / "run"
    options = ("--task", "sentence_mtl", "--train", data, "--eval", data, "--tasks", "mood", "what=thing")
    printed = command("train", *options, "--output", output, "--epochs", "6", "--head-option", "output_dim=16")
    assert "head        embeddings of width 16, 2 tasks, mean pooling, proportional sampling" in printed
    assert "mood        24 examples of 3 classes" in printed
    found = report(command, output, data, "--tasks", "mood", "what=thing")
    assert found["tasks"]["mood"]["examples"] == 24
    assert found["tasks"]["mood"]["metrics"]["accuracy"] > 0.6
    model = SentenceTransformerMTL.from_pretrained(output / "best_model")
    assert model.encode(["the good dog"]).shape == (1, 16)
    (row,) = predictions(command, output, "the good dog", "--top-k", "2")
    own = model.predict(["the good dog"])
    assert (row["mood"], row["what"]) == (own["mood"]["labels"][0], own["what"]["labels"][0])
    assert next(iter(row["mood_scores"].values())) == row["mood_confidence"] == float(own["mood"]["confidence"][0])
    (half,) = predictions(command, output, "the good dog", "--dtype", "bfloat16")
    assert half["mood_confidence"] == pytest.approx(row["mood_confidence"], abs=0.05)
    assert half["mood_confidence"] != row["mood_confidence"]
    saved = read_json(output / "train_config.json")
    assert (saved["task"], saved["schedule"], saved["tasks"]) == (
        "sentence_mtl", "constant", {"mood": "mood", "what": "thing"}
    )  # fmt: skip


def test_the_options_of_sentence_mtl(command, tmp_path):
    data = lines(tmp_path / "d.jsonl", labelled(16))
    base = ("--task", "sentence_mtl", "--train", data, "--tasks", "mood")
    config = tmp_path / "run.toml"
    config.write_text(
        f'task = "sentence_mtl"\ntask-sampling = "dynamic"\nepochs = 1\ntrain = "{data}"\n[tasks.mood]\nweight = 0.5\n'
        "[head-option]\ntask_attention = true\n[loss-option]\nembedding_weight = 0.1\n"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert "dynamic sampling" in command("train", "--config", config, "--output", one)
    assert read_json(one / "best_model/mtl_config.json")["task_attention"] is True
    assert main(["train", "--config", str(one / "train_config.json"), "--output", str(two)]) == 0
    arrays = [mx.load(str(path / "best_model/mtl.safetensors")) for path in (one, two)]
    assert all(np.array_equal(np.array(arrays[0][name]), np.array(arrays[1][name])) for name in arrays[0])
    options = ("--task-sampling", "equal", "--output", tmp_path / "equal")
    assert "equal sampling" in command("train", "--config", config, *options)
    for options, message in (
        (("--pooling", "max"), "expected --pooling of mean, cls with sentence_mtl but got max"),
        (("--head-option", "size=1"), "expected --head-option of output_dim"),
        (("--loss-option", "size=1"), "expected --loss-option of embedding_weight"),
        (("--pair-column", "thing"), "expected no --pair-column with --task sentence_mtl"),
        (("--class-weights",), "expected no --class-weights with --task sentence_mtl"),
    ):
        assert message in command("train", *base, *options, code=2)
