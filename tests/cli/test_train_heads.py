"""``mlx-bert train``, ``evaluate`` and ``predict`` with the heads that compare, rank, order or combine."""

import json

import mlx.core as mx
import numpy as np
import pytest
from cli_cases import THINGS, labelled, lines, predictions, report

from mlx_bert.__main__ import main
from mlx_bert.checkpoint import read_json, read_weights
from mlx_bert.data.collate import ListCollator
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer


def classes(key="mood", count=24):
    return [{"text": row["text"], "label": row[key]} for row in labelled(count)]


def trained(command, task, data, output, *options, epochs=6):
    given = ("--task", task, "--train", data, "--eval", data, "--output", output, "--epochs", epochs)
    return command("train", *given, *options)


def runs_again(output, folder):
    """Whether the options in the folder of a run make the same head."""
    assert main(["train", "--config", str(output / "train_config.json"), "--output", str(folder)]) == 0
    one, two = (read_weights(path / "best_model/head") for path in (output, folder))
    return one.keys() == two.keys() and all(np.array_equal(np.array(one[name]), np.array(two[name])) for name in one)


@pytest.mark.parametrize(
    ("head", "options"),
    [("ensemble", ["num_heads=2"]), ("time_series_classification", ["hidden_dim=16", "num_lstm_layers=1"])],
)
def test_heads_that_name_a_class(command, tmp_path, head, options):
    data, output = lines(tmp_path / "d.jsonl", classes()), tmp_path / "run"
    options = [f"--head-option={option}" for option in options]
    more = ("--class-weights", "--head-learning-rate", "5e-3", "--dropout", "0")
    assert f"head        {head}, mean pooling" in trained(command, head, data, output, *options, *more)
    found = report(command, output, data)
    assert found["metrics"]["accuracy"] > 0.4  # a third by chance
    assert set(found["classes"]) == {"mixed", "neg", "pos"}
    named = [row["label"] for row in predictions(command, output, "--input", data)]
    right = sum(name == row["label"] for name, row in zip(named, classes(), strict=True))
    assert right / len(named) == found["metrics"]["accuracy"]
    assert read_json(output / "best_model/head/config.json")["class_weights"]


def test_hierarchical_labels(command, tmp_path):
    tree = {"living": ["dog", "cat"], "thing": ["tree", "book"]}
    data, output = lines(tmp_path / "d.jsonl", classes("thing")), tmp_path / "run"
    option = ("--head-option", f"hierarchy={json.dumps(tree)}")
    trained(command, "hierarchical", data, output, *option, epochs=8)
    found = report(command, output, data)
    assert found["metrics"]["accuracy_level_0"] >= found["metrics"]["accuracy_level_1"] > 0.9
    assert found["classes"]["dog"]["support"] == 6
    assert predictions(command, output, "the good dog")[0]["label"] == "dog"
    assert runs_again(output, tmp_path / "two")
    base = ("train", "--task", "hierarchical", "--train", data, "--output", tmp_path / "x")
    assert "expected the tree of the labels" in command(*base, code=2)
    assert "expected no --labels with hierarchical" in command(*base, *option, "--labels", "dog,cat", code=2)
    strange = lines(tmp_path / "s.jsonl", [{"text": "a", "label": "house"}])
    assert "unknown label 'house'" in command(*base, *option, "--train", strange, code=2)


def test_rare_labels_may_be_in_the_part_set_aside(command, tmp_path):
    names = [f"rare{n}" for n in range(12)]
    tags = lines(tmp_path / "t.jsonl", [{"tokens": ["the", "dog"], "tags": ["O", f"B-{name}"]} for name in names])
    several = [{"text": "the dog", "label": ["often", name]} for name in names]
    pairs = [{"text": "the dog", "text_pair": "a cat", "label": name} for name in names]
    options = ("--epochs", "1", "--eval-size", "0.5", "--train")
    command("train", "--task", "token_classification", *options, tags, "--output", tmp_path / "one")
    assert read_json(tmp_path / "one/train_config.json")["labels"] == ["O", *sorted(f"B-{name}" for name in names)]
    data = lines(tmp_path / "m.jsonl", several)
    command("train", "--task", "multilabel_classification", *options, data, "--output", tmp_path / "two")
    assert read_json(tmp_path / "two/train_config.json")["labels"] == ["often", *sorted(names)]
    data = lines(tmp_path / "p.jsonl", pairs)
    command("train", "--task", "cross_encoder", *options, data, "--output", tmp_path / "three")
    assert set(report(command, tmp_path / "three", data)["classes"]) == set(names)
    unknown = lines(tmp_path / "u.jsonl", several[:1])
    given = (*options, lines(tmp_path / "n.jsonl", several[1:]), "--eval", unknown, "--output", tmp_path / "x")
    assert "u.jsonl has 1 bad row" in command("train", "--task", "multilabel_classification", *given, code=2)


def test_a_forecast(command, tmp_path):
    rows = [{"text": row["text"], "label": [float(n % 3), -float(n % 3)]} for n, row in enumerate(labelled(24))]
    data, output = lines(tmp_path / "d.jsonl", rows), tmp_path / "run"
    assert "targets     2" in trained(command, "time_series_regression", data, output, epochs=6)
    assert read_json(output / "best_model/head/config.json")["extra"]["forecast_horizon"] == 2
    found = report(command, output, data)
    assert found["metrics"]["rmse"] < 1.2  # 1.3 for zeros
    assert len(found["targets"]) == 2
    assert len(predictions(command, output, "the good dog")[0]["value"]) == 2


@pytest.mark.parametrize("task", ["regression", "time_series_regression"])
def test_targets_far_from_0_are_learnt(command, tmp_path, task):
    rows = [{"text": row["text"], "label": 1000.0 + 5 * (n % 3 - 1)} for n, row in enumerate(labelled(24))]
    data, output = lines(tmp_path / "d.jsonl", rows), tmp_path / "run"
    trained(command, task, data, output, epochs=10)
    assert report(command, output, data)["metrics"]["rmse"] < 2  # 4.1 for their mean
    values = [row["value"] for row in predictions(command, output, *[row["text"] for row in rows[:3]])]
    assert np.abs(np.ravel(values) - [995, 1000, 1005]).max() < 4


def test_ranking_of_documents(command, tmp_path):
    rows = [
        {"query": f"the {a}", "documents": [f"a {b}" for b in (*THINGS[: 2 + n % 3], a)],
         "labels": [int(a == b) for b in (*THINGS[: 2 + n % 3], a)]}
        for n, a in enumerate(THINGS[:4] * 3)
    ]  # fmt: skip
    data, output = lines(tmp_path / "d.jsonl", rows), tmp_path / "run"
    printed = trained(command, "ranking", data, output, "--head-option", "scorer_sizes=[8]", epochs=12)
    assert "eval ndcg@10" in printed
    found = report(command, output, data)["metrics"]
    assert found["ndcg@10"] > 0.8
    (row,) = predictions(command, output, "--input", lines(tmp_path / "q.jsonl", [rows[2]]))
    assert sorted(row["documents"]) == sorted(rows[2]["documents"])
    assert row["document_scores"] == sorted(row["document_scores"], reverse=True)
    model = BertWithHead.from_pretrained(output / "best_model")
    assert model.head.head_type == "ranking"
    assert runs_again(output, tmp_path / "two")
    assert "expected --input with queries" in command("predict", "--model", output, "a", code=2)


def test_lists_are_padded_to_the_longest():
    rows = [np.array([5, 6], np.int32), np.array([7], np.int32)]
    examples = [{"input_ids": rows, "labels": [1.0, 2.0]}, {"input_ids": rows[:1], "labels": [3.0]}]
    batch = ListCollator(pad_id=0, exact=True)(examples)
    assert batch["input_ids"].tolist() == [[[5, 6], [7, 0]], [[5, 6], [0, 0]]]
    assert batch["attention_mask"].tolist() == [[[True, True], [True, False]], [[True, True], [False, False]]]
    assert batch["labels"].tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert mx.all(ListCollator(pad_id=0, exact=True)([{"input_ids": rows[:1]}])["attention_mask"]).item()


def test_similarity_of_pairs(command, tmp_path):
    rows = [
        {"text": f"the {a}", "text_pair": f"a {b}", "score": 5.0 * (a == b)} for a in THINGS[:4] for b in THINGS[:4]
    ]
    data, output = lines(tmp_path / "d.jsonl", rows), tmp_path / "run"
    printed = trained(command, "text_similarity", data, output, "--largest-score", "5", epochs=8)
    assert "eval spearman" in printed
    assert report(command, output, data, "--largest-score", "5")["metrics"]["spearman"] > 0.5
    found = predictions(command, output, "--input", data, "--pair-column", "text_pair")
    same = [row["score"] for row, given in zip(found, rows, strict=True) if given["score"]]
    other = [row["score"] for row, given in zip(found, rows, strict=True) if not given["score"]]
    assert np.mean(same) > np.mean(other)
    renamed = [{"sentence1": row["text"], "sentence2": row["text_pair"]} for row in rows]
    assert predictions(command, output, "--input", lines(tmp_path / "s.jsonl", renamed)) == found
    assert len(predictions(command, output, "the dog")[0]["embedding"]) == 32  # the encoder's width
    assert runs_again(output, tmp_path / "two")
    assert "expected --largest-score with pairs" in command(
        "train", "--train", lines(tmp_path / "c.jsonl", classes()), "--largest-score", "5", code=2
    )


@pytest.mark.parametrize("head", ["contrastive", "metric_learning"])
def test_embeddings_from_classes(command, tmp_path, head):
    data, output = lines(tmp_path / "d.jsonl", classes()), tmp_path / "run"
    printed = trained(command, head, data, output, "--head-option", "projection_dim=8", epochs=4)
    assert "eval recall@1" in printed
    assert report(command, output, data)["metrics"]["recall@1"] > 0.9
    unseen = lines(tmp_path / "u.jsonl", [{**row, "label": f"new {row['label']}"} for row in classes()])
    assert report(command, output, unseen)["metrics"]["recall@1"] > 0.9
    texts = ["the good dog", "the bad cat is here"]
    found = np.array([row["embedding"] for row in predictions(command, output, *texts)])
    model, tokenizer = (kind.from_pretrained(output / "best_model") for kind in (BertWithHead, Tokenizer))
    wanted = [np.array(model(*tokenizer([text]))["embeddings"])[0] for text in texts]
    assert np.allclose(found, wanted, atol=1e-5)
    assert found.shape == (2, 8)
    assert runs_again(output, tmp_path / "two")
    assert "expected no --labels" in command("train", "--task", head, "--train", data, "--labels", "a,b", code=2)


def test_contrastive_from_pairs_triplets_and_scores(command, tmp_path):
    pairs = [{"anchor": f"the {thing}", "positive": f"a {thing}"} for thing in THINGS]
    others = {thing: [name for name in THINGS if name != thing][:2] for thing in THINGS}
    triplets = [{**row, "negative": [f"a {name}" for name in others[thing]]}
                for thing, row in zip(THINGS, pairs, strict=True)]  # fmt: skip
    for name, rows in (("pairs", pairs), ("triplets", triplets)):
        data, output = lines(tmp_path / f"{name}.jsonl", rows), tmp_path / name
        trained(command, "contrastive", data, output, epochs=3)
        assert report(command, output, data)["metrics"]["recall@1"] > 0.7
    scored = [
        {"text": f"the {a}", "text_pair": f"a {b}", "score": float(a == b)} for a in THINGS[:3] for b in THINGS[:3]
    ]
    data, output = lines(tmp_path / "scored.jsonl", scored), tmp_path / "scored"
    trained(command, "contrastive", data, output, "--head-option", "loss=cosine_mse", "--metric", "spearman", epochs=3)
    assert report(command, output, data)["metrics"]["spearman"] > 0
    triplets[3]["negative"] = "a dog"
    data = lines(tmp_path / "bad.jsonl", triplets)
    assert "line 4: expected 4 texts as in the first row but got 3" in command(
        "train", "--task", "contrastive", "--train", data, "--output", tmp_path / "x", code=2
    )


@pytest.mark.parametrize(
    ("head", "labels", "name"),
    [
        ("ordinal_regression", [1, 1, 1, 2, 3], "class_weights"),
        ("multilabel_classification", ["a|b", "b", "b", "b", "b"], "pos_weight"),
    ],
)
def test_weights_of_rare_classes(command, tmp_path, head, labels, name):
    data = [{"text": row["text"], "label": labels[n % 5]} for n, row in enumerate(labelled(30))]
    output = tmp_path / "run"
    trained(command, head, lines(tmp_path / "d.jsonl", data), output, "--class-weights", epochs=1)
    config = read_json(output / "best_model/head/config.json")
    weights = config.get(name) or config["extra"][name]
    assert weights[0] > weights[1] if name == "pos_weight" else weights[0] < weights[1]
