"""Each loss of a cross-encoder, value and gradients, against sentence-transformers on one tiny model."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from sentence_transformers import CrossEncoder as Reference
from sentence_transformers.cross_encoder import losses as theirs
from transformers import BertConfig, BertForSequenceClassification

from heads.losses import lambda_loss
from mlx_bert.data.groups import GroupCollator, as_groups, tokenize_groups
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.training.cross_encoder import CrossEncoderObjective, check_labels
from mlx_bert.training.feed import default_collator
from reference import redraw

GROUPS = [
    {"query": "what is a dog", "documents": ["a small animal", "the red city", "it is a happy dog !"],
     "labels": [2, 0, 1]},
    {"query": "rain", "documents": ["the sun today", "it is never rain"], "labels": [0, 1]},
    {"query": "who can sleep", "documents": ["the cat sleeps", "a dog sleeps slowly", "a tree", "the old house",
                                             "we sleep , always"], "labels": [3, 1, 0, 0, 1]},
]  # fmt: skip
SOFT = [{**group, "labels": [0.9 - 0.2 * n for n in range(len(group["documents"]))]} for group in GROUPS]
LEVEL = [{**group, "documents": group["documents"][:2], "labels": [7.5, n - 2.0]} for n, group in enumerate(GROUPS)]
SORTED = [
    {**group, "documents": [text for _, text in sorted(zip(group["labels"], group["documents"], strict=True),
                                                       key=lambda pair: -pair[0])],
     "labels": sorted(group["labels"], reverse=True)} for group in GROUPS
]  # fmt: skip
PAIRS = [{"text": g["query"], "text_pair": g["documents"][0], "label": n % 2} for n, g in enumerate(GROUPS * 3)]
CLASSES = [{**pair, "label": n % 3} for n, pair in enumerate(PAIRS)]
TEACHER = [{**pair, "label": 0.3 * n - 1} for n, pair in enumerate(PAIRS)]


def tiny(source, target, num_labels):
    shutil.copytree(source, target)
    torch.manual_seed(num_labels)
    config = BertConfig.from_pretrained(source, num_labels=num_labels, attention_probs_dropout_prob=0.0,
                                        hidden_dropout_prob=0.0)  # fmt: skip
    redraw(BertForSequenceClassification(config), std=0.2).save_pretrained(target)
    settings = json.loads((target / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


@pytest.fixture(scope="module")
def folders(tiny_bert_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("cross")
    return {n: tiny(tiny_bert_folder, root / str(n), n) for n in (1, 3)}


def of_groups(rows):
    return [[row["query"] for row in rows], [row["documents"] for row in rows]], [
        torch.tensor(row["labels"], dtype=torch.float32) for row in rows
    ]


def of_pairs(rows):
    return [[row["text"] for row in rows], [row["text_pair"] for row in rows]], torch.tensor(
        [row["label"] for row in rows]
    )


def of_triplets(rows):
    columns = [[row["query"] for row in rows], *map(list, zip(*(row["documents"] for row in rows), strict=True))]
    return columns, torch.tensor([row["labels"][0] - row["labels"][1] for row in rows])


SCHEMES = {
    "none": theirs.NoWeightingScheme,
    "ndcg_loss1": theirs.NDCGLoss1Scheme,
    "ndcg_loss2": theirs.NDCGLoss2Scheme,
    "lambdarank": theirs.LambdaRankScheme,
}
CASES = {
    "bce": ("bce", {}, PAIRS, lambda m: theirs.BinaryCrossEntropyLoss(m), of_pairs),
    "bce weighted": (
        "bce", {"pos_weight": 3.0}, PAIRS,
        lambda m: theirs.BinaryCrossEntropyLoss(m, pos_weight=torch.tensor(3.0)), of_pairs),
    "ce": ("ce", {}, CLASSES, lambda m: theirs.CrossEntropyLoss(m), of_pairs),
    "mse": ("mse", {}, TEACHER, lambda m: theirs.MSELoss(m), of_pairs),
    "mse sigmoid": ("mse", {"activation_fn": "Sigmoid"}, TEACHER,
                    lambda m: theirs.MSELoss(m, activation_fn=torch.nn.Sigmoid()), of_pairs),
    "margin": ("margin_mse", {}, LEVEL, lambda m: theirs.MarginMSELoss(m), of_triplets),
    "listnet": ("listnet", {}, GROUPS, lambda m: theirs.ListNetLoss(m), of_groups),
    "listnet soft": ("listnet", {}, SOFT, lambda m: theirs.ListNetLoss(m), of_groups),
    "ranknet": ("ranknet", {}, GROUPS, lambda m: theirs.RankNetLoss(m, reduction_log="natural"), of_groups),
    "listmle": ("listmle", {}, GROUPS, lambda m: theirs.ListMLELoss(m, respect_input_order=False), of_groups),
    "listmle as given": ("listmle", {}, SORTED, lambda m: theirs.ListMLELoss(m), of_groups),
    "plistmle": ("listmle", {"position_aware": True}, SORTED, lambda m: theirs.PListMLELoss(m), of_groups),
    "lambda": ("lambda", {}, GROUPS, lambda m: theirs.LambdaLoss(m), of_groups),
    "lambda soft": ("lambda", {"mu": 3.0, "sigma": 0.5}, SOFT,
                    lambda m: theirs.LambdaLoss(m, theirs.NDCGLoss2PPScheme(3.0), sigma=0.5), of_groups),
    "lambda at 2": ("lambda", {"k": 2}, GROUPS, lambda m: theirs.LambdaLoss(m, k=2), of_groups),
    **{f"lambda {name}": ("lambda", {"weighting": name}, GROUPS,
                          lambda m, scheme=scheme: theirs.LambdaLoss(m, scheme()), of_groups)
       for name, scheme in SCHEMES.items()},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(folders, case):
    name, options, rows, make, arguments = CASES[case]
    folder = folders[3 if name == "ce" else 1]
    reference = Reference(str(folder), device="cpu")
    wanted = make(reference)(*arguments(rows))
    wanted.backward()
    expected = {key.removeprefix("model."): p.grad.numpy() for key, p in reference[0].named_parameters()
                if p.grad is not None}  # fmt: skip

    encoder = CrossEncoder.from_pretrained(folder)
    objective = CrossEncoderObjective(name, **options)
    groups = [check_labels(group, name, encoder, "rows") for group in as_groups(rows)]
    collate = GroupCollator(default_collator(encoder.model, encoder.tokenizer))
    batch = collate(tokenize_groups(groups, encoder.tokenizer))
    assert batch["input_ids"].shape[0] % 8 == 0
    model = encoder.model

    def loss_of(parameters):
        model.update(parameters)
        return objective.loss(model, objective.forward(model, batch), batch)[0]

    value, gradients = mx.value_and_grad(loss_of)(model.trainable_parameters())
    np.testing.assert_allclose(value.item(), wanted.item(), rtol=1e-4, atol=1e-6)
    flat = dict(tree_flatten(gradients))
    for ours, other in (("head.output.weight", "classifier.weight"),
                        ("head.pooling.dense.weight", "bert.pooler.dense.weight"),
                        ("bert.encoder.embeddings.word.weight", "bert.embeddings.word_embeddings.weight")):  # fmt: skip
        scale = np.abs(expected[other]).max()
        assert scale > 1e-4
        np.testing.assert_allclose(np.array(flat[ours]), expected[other], atol=2e-4 * scale, err_msg=other)


@pytest.mark.parametrize(("name", "options"), [("bce", {}), ("mse", {}), ("margin_mse", {}), ("listnet", {}),
                                               ("listmle", {}), ("ranknet", {}), ("lambda", {"k": 2}),
                                               ("lambda", {"weighting": "ndcg_loss1"})])  # fmt: skip
def test_the_weights_make_parts_of_a_batch_equal_to_the_whole(folders, name, options):
    encoder = CrossEncoder.from_pretrained(folders[1])
    objective = CrossEncoderObjective(name, **options)
    rows = SOFT if name in ("bce", "mse") else GROUPS
    examples = tokenize_groups([check_labels(g, name, encoder, "rows") for g in as_groups(rows)], encoder.tokenizer)
    collate = GroupCollator(default_collator(encoder.model, encoder.tokenizer))

    def loss_and_weight(part):
        batch = collate(part)
        loss, weight = objective.loss(encoder.model, objective.forward(encoder.model, batch), batch)
        return loss.item(), weight.item()

    whole, weight = loss_and_weight(examples)
    parts = [loss_and_weight([example]) for example in examples]
    assert sum(w for _, w in parts) == pytest.approx(weight, rel=1e-5)
    assert sum(value * w for value, w in parts) / weight == pytest.approx(whole, rel=1e-4)


def test_class_weights_of_ce(folders):
    encoder = CrossEncoder.from_pretrained(folders[3])
    objective = CrossEncoderObjective("ce", class_weights=[1.0, 2.0, 5.0], label_smoothing=0.1)
    examples = tokenize_groups(as_groups(CLASSES), encoder.tokenizer)
    batch = GroupCollator(default_collator(encoder.model, encoder.tokenizer))(examples)
    outputs = objective.forward(encoder.model, batch)
    loss, weight = objective.loss(encoder.model, outputs, batch)
    reference = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.1)
    logits, labels = np.array(outputs["scores"])[:9], [row["label"] for row in CLASSES]
    assert loss.item() == pytest.approx(reference(torch.tensor(logits), torch.tensor(labels)).item(), rel=1e-5)
    assert weight.item() == pytest.approx(3 * (1 + 2 + 5))


def test_errors():
    with pytest.raises(ValueError, match=r"expected loss to be one of bce, ce, mse, lambda.* but got 'hinge'"):
        CrossEncoderObjective("hinge")
    with pytest.raises(ValueError, match=r"loss 'listnet' has no options k\. It has none"):
        CrossEncoderObjective("listnet", k=3)
    scores = mx.array([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"expected weighting among none, ndcg_loss1.* but got 'best'"):
        lambda_loss(scores, scores, weighting="best")
