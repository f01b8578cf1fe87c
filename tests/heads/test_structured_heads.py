"""Ranking, contrastive, metric learning and hierarchical heads."""

import mlx.core as mx
import numpy as np
import pytest

from heads import HeadConfig, create_head
from heads.hierarchical import LabelTree

RNG = np.random.default_rng(0)


def head(kind: str, size: int = 3, **fields):
    made = create_head({"head_type": kind, "input_size": 8, "output_size": size, **fields})
    made.eval()
    return made


def rank(loss: str = "listnet", **fields):
    return head("ranking", ranking_loss=loss, scorer_sizes=[6], **fields)


SCORES = {"scores": mx.array([1.0, 2.0, 3.0])}


@pytest.mark.parametrize(
    ("loss", "value"),
    [("listnet", 1.828118), ("ranknet", 1.251150), ("hinge", 1.666667), ("lambdarank", 0.253230)],
)
def test_ranking_golden_vectors(loss, value):
    found = rank(loss).compute_loss(SCORES, mx.array([2.0, 0.0, 1.0])).item()
    assert found == pytest.approx(value, abs=1e-5)  # V-20, V-21


def test_ranking_shapes():
    items, sequences = mx.random.normal((2, 3, 8)), mx.random.normal((2, 3, 4, 8))
    assert rank()(items[:, 0])["scores"].shape == (2,)
    assert rank()(items)["scores"].shape == (2,)
    assert rank(use_pooling=False)(items)["scores"].shape == (2, 3)
    outputs = rank("ranknet")(sequences)
    assert outputs["scores"].shape == (2, 3)
    order = np.argsort(-np.array(outputs["scores"]), axis=1)
    assert np.array_equal(np.array(outputs["predictions"]), order)
    ranks = np.array(outputs["rankings"])
    assert np.array_equal(np.take_along_axis(ranks, order, axis=1), [[1, 2, 3]] * 2)
    assert mx.allclose(mx.sum(rank()(sequences)["rankings"], axis=1), mx.ones(2))


def test_ranking_scorer_by_hand():
    model = rank(temperature=2.0)
    x = mx.random.normal((4, 8))
    block = model.scorer[0]
    wanted = model.output(block.norm(mx.maximum(block.dense(x), 0)))[:, 0] / 2
    np.testing.assert_allclose(np.array(model(x)["scores"]), np.array(wanted), atol=1e-6)


@pytest.mark.parametrize("loss", ["listnet", "ranknet", "lambdarank", "hinge", "pointwise"])
def test_items_that_are_not_there_do_not_count(loss):
    model = rank(loss, use_pooling=False)
    x, relevance = mx.random.normal((2, 4, 8)), mx.array([[2.0, 0, 1, 9], [0, 1, 9, 9]])
    mask = mx.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    outputs = model(x, mask)
    first = model.compute_loss(model(x[:1, :3]), relevance[:1, :3])
    alone = model.compute_loss(model(x[:1], mask[:1]), relevance[:1])
    assert first.item() == pytest.approx(alone.item(), abs=1e-5)
    changed = mx.where(mx.expand_dims(mask, -1) == 1, x, float("nan"))
    again = model(changed, mask)
    assert mx.array_equal(outputs["predictions"], again["predictions"])
    assert np.array(outputs["predictions"])[1, 2:].tolist() == [2, 3]
    loss_value = model.compute_loss(outputs, relevance).item()
    as_target = {"relevance": relevance, "mask": mask}
    assert model.compute_loss(model(x), as_target).item() == pytest.approx(loss_value, abs=1e-5)
    metrics = model.compute_metrics(outputs, relevance)
    assert metrics == model.compute_metrics(model(x), as_target)


def test_groups_within_a_batch():
    model = rank("ranknet")
    scores, relevance = mx.array([1.0, 2.0, 3.0, 0.5, 0.1]), mx.array([2.0, 0, 1, 1, 0])
    groups = mx.array([7, 7, 7, 4, 4])
    found = model.compute_loss({"scores": scores}, {"relevance": relevance, "group_ids": groups}).item()
    pairs = [(0, 1), (0, 2), (2, 1), (3, 4)]
    wanted = np.mean([np.log1p(np.exp(-(scores[i] - scores[j]).item())) for i, j in pairs])
    assert found == pytest.approx(wanted, abs=1e-5)


def test_ranking_metrics_and_refusals():
    found = rank().compute_metrics(SCORES, mx.array([2.0, 0.0, 1.0]))
    assert found["ndcg@10"] == pytest.approx(0.688529, abs=1e-5)  # V-21
    with pytest.raises(ValueError, match="ranking_loss"):
        rank("softrank")
    with pytest.raises(ValueError, match="temperature"):
        rank(temperature=0.0)


def contrast(**fields):
    return head("contrastive", **{"projection_dim": 4, "use_pooling": False, **fields})


def test_contrastive_shapes():
    model = contrast()
    single = model(mx.random.normal((3, 8)))["embeddings"]
    assert single.shape == (3, 4)
    assert mx.allclose(mx.linalg.norm(single, axis=-1), mx.ones(3), atol=1e-5)
    pairs = model(mx.random.normal((3, 2, 8)))
    assert (pairs["similarities"].shape, pairs["logits"].shape) == ((3,), (3,))
    wanted = mx.sum(pairs["embeddings"][:, 0] * pairs["embeddings"][:, 1], axis=-1)
    assert mx.allclose(pairs["similarities"], wanted, atol=1e-5)
    assert mx.allclose(pairs["logits"], wanted / 0.07, atol=1e-4)
    many = model(mx.random.normal((3, 5, 8)))
    assert many["logits"].shape == (3, 5, 5)
    assert head("contrastive")(mx.random.normal((2, 3, 8)))["embeddings"].shape == (2, 128)
    hidden = contrast(projection_hidden_dim=6, normalize_embeddings=False)
    x = mx.random.normal((3, 8))
    assert mx.allclose(hidden(x)["embeddings"], hidden.output(mx.maximum(hidden.hidden(x), 0)), atol=1e-6)


def pairs_of(first, second):
    return {"embeddings": mx.stack([mx.array(first), mx.array(second)], axis=1)}


def test_contrastive_golden_vectors():
    a, b = [[1.0, 0], [0.6, 0.8]], [[0.8, 0.6], [0, 1.0]]
    found = contrast(temperature=0.5).compute_loss(pairs_of(a, b)).item()
    assert found == pytest.approx(0.524897, abs=1e-5)  # V-22
    model = contrast(loss="pair_contrastive")
    pair = pairs_of([[1.0, 0]], [[0.6, 0.8]])
    assert model.compute_loss(pair, mx.array([1])).item() == pytest.approx(0.8, abs=1e-5)  # V-24
    assert model.compute_loss(pair, mx.array([0])).item() == pytest.approx(0.011146, abs=1e-5)
    similar = contrast(loss="cosine_mse")
    assert similar.compute_loss(pair, mx.array([0.1])).item() == pytest.approx(0.25, abs=1e-5)
    triplet = {"embeddings": mx.array([[[1.0, 0], [0.6, 0.8], [0, 1.0]]])}
    value = contrast(loss="triplet", margin=2.0).compute_loss(triplet).item()
    assert value == pytest.approx(0.8 - 2 + 2, abs=1e-5)


def test_multiple_negatives_by_hand():
    model = contrast(temperature=0.5)
    x = RNG.normal(size=(3, 4, 4))
    found = model.compute_loss({"embeddings": mx.array(x.astype(np.float32))}).item()
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    candidates = np.concatenate([x[:, 1], x[:, 2:].reshape(-1, 4)])
    logits = 2 * x[:, 0] @ candidates.T
    wanted = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])
    assert found == pytest.approx(wanted, abs=1e-5)


def test_contrastive_loss_needs_fitting_texts():
    with pytest.raises(ValueError, match="got 2 text"):
        contrast(loss="triplet").compute_loss(pairs_of([[1.0, 0]], [[0.6, 0.8]]))
    with pytest.raises(ValueError, match="got 1 text"):
        contrast(loss="info_nce").compute_loss({"embeddings": mx.zeros((2, 4))})
    with pytest.raises(ValueError, match="expected loss among"):
        contrast(loss="softmax")


def test_retrieval_metrics_leave_a_text_itself_out():
    model = contrast()
    embeddings = mx.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, -1]])
    found = model.compute_metrics({"embeddings": embeddings}, mx.array([0, 0, 1, 1, 2]))
    assert found["recall@1"] == 1.0
    found = model.compute_metrics({"embeddings": embeddings}, mx.array([0, 1, 1, 0, 2]))
    assert found["recall@1"] == 0.0
    assert "recall@1" in model.compute_metrics(pairs_of([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]]))


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "manhattan"])
def test_metric_learning_takes_the_hardest(distance):
    model = head("metric_learning", projection_dim=3, distance=distance, normalize_embeddings=False, margin=0.5)
    x, labels = RNG.normal(size=(7, 3)).astype(np.float32), np.array([0, 0, 1, 1, 1, 2, 0])
    found = model.compute_loss({"embeddings": mx.array(x)}, mx.array(labels)).item()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    d = {
        "cosine": 1 - unit @ unit.T,
        "euclidean": np.linalg.norm(x[:, None] - x[None], axis=-1),
        "manhattan": np.abs(x[:, None] - x[None]).sum(-1),
    }[distance]
    values = []
    for i in range(7):
        same, other = (labels == labels[i]) & (np.arange(7) != i), labels != labels[i]
        if same.any():
            values.append(max(0, d[i][same].max() - d[i][other].min() + 0.5))
    assert found == pytest.approx(np.mean(values), abs=1e-5)
    with pytest.raises(ValueError, match="distance"):
        head("metric_learning", distance="chebyshev")


TREE = {"animal": ["dog", "cat"], "plant": ["tree"], "dog": ["poodle", "boxer"]}
INDEX = {"poodle": 0, "boxer": 1, "dog": 2, "cat": 3, "animal": 4, "plant": 5, "tree": 6}


def hierarchical(**fields):
    return create_head(HeadConfig("hierarchical", 8, extra={"hierarchy": TREE, "label_to_idx": INDEX, **fields}))


def test_tree_levels_and_paths():
    tree = LabelTree(TREE, INDEX)
    assert tree.levels == [["animal", "plant"], ["dog", "cat", "tree"], ["poodle", "boxer"]]
    assert tree.leaves == ["cat", "tree", "poodle", "boxer"]
    assert tree.path("boxer") == ["animal", "dog", "boxer"]
    assert list(LabelTree(TREE).index) == ["animal", "plant", "dog", "cat", "tree", "poodle", "boxer"]


@pytest.mark.parametrize(
    ("hierarchy", "index", "match"),
    [
        ({"a": ["b"], "c": ["b"]}, None, "one parent for 'b'"),
        ({"a": ["b"], "b": ["a"]}, None, "cycle through a, b"),
        ({"r": ["s"], "a": ["b"], "b": ["a"]}, None, "cycle through a, b"),
        ({}, None, "at least one parent"),
        ({"a": ["b"]}, {"a": 0}, "difference in b"),
        ({"a": ["b"]}, {"a": 0, "b": 1, "c": 2}, "difference in c"),
        ({"a": ["b"]}, {"a": 0, "b": 2}, "from 0 to 1"),
    ],
)
def test_trees_are_checked(hierarchy, index, match):
    with pytest.raises(ValueError, match=match):
        LabelTree(hierarchy, index)


def set_logits(model, *levels):
    for layer, values in zip(model.levels, levels, strict=True):
        layer.weight, layer.bias = mx.zeros(layer.weight.shape), mx.array(values)


def softmax(values):
    values = np.exp(np.array(values))
    return values / values.sum()


def test_leaf_probabilities_are_products_of_choices_among_siblings():
    model = hierarchical()
    set_logits(model, [1.0, 0.0], [0.5, 0.2, 3.0], [0.0, 1.0])
    outputs = model(mx.zeros((1, 8)))
    roots, animals, dogs = softmax([1.0, 0.0]), softmax([0.5, 0.2]), softmax([0.0, 1.0])
    wanted = [roots[0] * animals[1], roots[1], roots[0] * animals[0] * dogs[0], roots[0] * animals[0] * dogs[1]]
    np.testing.assert_allclose(np.array(outputs["probabilities"])[0], wanted, atol=1e-6)
    assert sum(wanted) == pytest.approx(1)
    assert [x.shape[1] for x in outputs["level_logits"].values()] == [2, 3, 2]


def test_joint_and_greedy_decoding_differ():
    # The best first step leads to two equal children; the other root has one sure leaf.
    levels = ([0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0])
    joint, greedy = hierarchical(), hierarchical(decoding="greedy")
    for model in (joint, greedy):
        set_logits(model, *levels)
    x = mx.zeros((1, 8))
    assert joint(x)["path"].tolist() == [[5, 6, -1]]
    assert joint(x)["predictions"].tolist() == [6]
    assert greedy(x)["path"].tolist() == [[4, 2, 0]]
    set_logits(greedy, [0.0, 1.0], [0.0, 0.0, -9.0], [0.0, 0.0])
    assert greedy(x)["path"].tolist() == [[5, 6, -1]]  # a shallow leaf ends the path
    assert greedy(x)["predictions"].tolist() == [6]


def test_a_greedy_path_stays_ended():
    deep = {"a": ["b", "c"], "b": ["d"], "d": ["e"]}
    model = create_head(HeadConfig("hierarchical", 8, extra={"hierarchy": deep, "decoding": "greedy"}))
    set_logits(model, [0.0], [0.0, 1.0], [0.0], [0.0])
    assert model(mx.zeros((1, 8)))["path"].tolist() == [[0, 2, -1, -1]]


def test_a_label_trains_all_its_ancestors():
    model = hierarchical(consistency_weight=0.0)
    levels = ([1.0, 0.0], [0.5, 0.2, 3.0], [0.0, 1.0])
    set_logits(model, *levels)
    outputs = model(mx.zeros((3, 8)))
    a, b, c = (-np.log(softmax(level)) for level in levels)
    # boxer: three levels; tree: two; animal, an inner node: one.
    wanted = (a[0] + a[1] + a[0]) / 3 + (b[0] + b[2]) / 2 + c[1]
    found = model.compute_loss(outputs, mx.array([1, 6, 4])).item()
    assert found == pytest.approx(wanted, abs=1e-5)
    found = model.compute_loss(outputs, mx.array([[1], [-100], [-100]])).item()
    assert found == pytest.approx(a[0] + b[0] + c[1], abs=1e-5)


def test_consistency():
    model, plain = hierarchical(consistency_weight=2.0), hierarchical(consistency_weight=0.0)
    levels = [np.log([0.7, 0.3]), np.log([0.4, 0.2, 0.4]), np.log([0.5, 0.5])]
    for other in (model, plain):
        set_logits(other, *levels)
    outputs = model(mx.zeros((2, 8)))
    labels = mx.array([1, 6])
    penalty = np.mean([0.01, 0.01, (0.4 - 1.0) ** 2])  # V-29 at the first level; three parents
    difference = model.compute_loss(outputs, labels) - plain.compute_loss(outputs, labels)
    assert difference.item() == pytest.approx(2 * penalty, abs=1e-5)


def test_hierarchical_metrics_at_each_depth():
    model = hierarchical()
    outputs = {"path": mx.array([[4, 2, 0], [5, 6, -1], [4, 3, -1]])}
    found = model.compute_metrics(outputs, mx.array([1, 6, 4]))
    assert found["accuracy"] == pytest.approx(2 / 3)  # the inner node is met by its own path
    assert [found[f"accuracy_level_{level}"] for level in range(3)] == pytest.approx([1, 1, 0])


def test_hierarchical_refusals():
    with pytest.raises(ValueError, match="option hierarchy"):
        head("hierarchical")
    with pytest.raises(ValueError, match="'joint' or 'greedy'"):
        hierarchical(decoding="beam")
