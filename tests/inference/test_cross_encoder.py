"""CrossEncoder against sentence-transformers on tiny classifiers with redrawn weights."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from sentence_transformers import CrossEncoder as Reference
from transformers import AutoModelForSequenceClassification, BertConfig

from mlx_bert.inference import cross_encoder, precision
from mlx_bert.inference.cross_encoder import CrossEncoder

PAIRS = [("abc", "query a"), ("", "x"), ("a b c d", "e f g " * 30), ("hello", "doc world"), ("A", "B C")]


@pytest.fixture(scope="module", params=[1, 3])
def folder(request, tiny_bert, tmp_path_factory):
    """A pair classifier with one class or three."""
    folder = tmp_path_factory.mktemp(f"pairs-{request.param}")
    shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
    torch.manual_seed(request.param)
    config = BertConfig.from_pretrained(tiny_bert, num_labels=request.param)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def change(source, target, **keys):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **keys}))
    return target


@pytest.mark.parametrize("batch_size", [1, 32])
def test_scores(folder, batch_size):
    ours = CrossEncoder.from_pretrained(folder).predict(PAIRS, batch_size)
    theirs = Reference(str(folder), device="cpu").predict(PAIRS)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_softmax_and_single_pair(folder):
    ours, theirs = CrossEncoder.from_pretrained(folder), Reference(str(folder), device="cpu")
    np.testing.assert_allclose(
        ours.predict(PAIRS, apply_softmax=True), theirs.predict(PAIRS, apply_softmax=True), atol=1e-5
    )
    np.testing.assert_allclose(ours.predict(PAIRS[0]), theirs.predict(PAIRS[0]), atol=1e-5)
    assert np.shape(ours.predict(PAIRS[0])) == np.shape(theirs.predict(PAIRS[0]))
    assert isinstance(ours.predict(PAIRS, convert_to_numpy=False), mx.array)
    assert ours.predict([]).shape == ((0,) if ours.num_labels == 1 else (0, 3))


IDENTITY = "torch.nn.modules.linear.Identity"
CONFIGS = {
    "nested": {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.0"}},
    "older": {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
    "own code": {"sentence_transformers": {"activation_fn": "mine.Activation"}},
}


TANH, SIGMOID = (f"torch.nn.modules.activation.{name}" for name in ("Tanh", "Sigmoid"))
OWN = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("beside", "config", "wanted"),
    [
        ({}, {"sentence_transformers": {"activation_fn": TANH}, "sbert_ce_default_activation_function": SIGMOID}, TANH),
        ({"activation_fn": TANH}, {"sentence_transformers": {"activation_fn": SIGMOID}}, TANH),
        ({"sentence_transformers": {"activation_fn": TANH}, "activation_fn": SIGMOID}, {}, TANH),
        ({"activation_fn": None}, {"sbert_ce_default_activation_function": TANH}, TANH),
        ({"sbert_ce_default_activation_function": TANH}, {"activation_fn": TANH}, None),
    ],
)
def test_which_of_several_activations_counts(tmp_path, beside, config, wanted):
    for name, values in ((OWN, beside), ("config.json", config)):
        (tmp_path / name).write_text(json.dumps(values))
    assert cross_encoder.stored_activation(tmp_path) == wanted


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_activation_that_config_json_asks_for(folder, tmp_path, kind):
    changed = change(folder, tmp_path / "model", **CONFIGS[kind])
    ours = CrossEncoder.from_pretrained(changed)
    np.testing.assert_allclose(ours.predict(PAIRS), Reference(str(changed), device="cpu").predict(PAIRS), atol=1e-5)


def test_the_folder_that_sentence_transformers_saves(folder, tmp_path):
    reference = Reference(str(folder), device="cpu", activation_fn=torch.nn.Tanh())
    reference.save_pretrained(str(tmp_path / "saved"))
    ours = CrossEncoder.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(ours.predict(PAIRS), reference.predict(PAIRS), atol=1e-5)


def test_activation_by_argument(folder):
    raw = CrossEncoder.from_pretrained(folder, activation_fn="Identity").predict(PAIRS)
    model = CrossEncoder.from_pretrained(folder, activation_fn=IDENTITY)
    np.testing.assert_array_equal(model.predict(PAIRS), raw)
    np.testing.assert_allclose(model.predict(PAIRS, activation_fn=mx.tanh), np.tanh(raw), atol=1e-6)
    assert np.abs(raw).max() > 1


def test_truncation(folder):
    ours = CrossEncoder.from_pretrained(folder, max_length=12)
    theirs = Reference(str(folder), device="cpu", max_length=12)
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), atol=1e-5)
    assert np.abs(ours.predict(PAIRS) - CrossEncoder.from_pretrained(folder).predict(PAIRS)).max() > 1e-4


def test_an_iterator_gives_an_iterator_in_bounded_memory(folder, monkeypatch):
    monkeypatch.setattr(cross_encoder, "WINDOW", 4)
    ours = CrossEncoder.from_pretrained(folder)
    taken = []

    def pairs():
        while True:
            taken.append(len(taken))
            yield "a b", "c " * (taken[-1] % 7)

    options = {"apply_softmax": True, "batch_size": 2}
    scores = ours.predict(pairs(), **options)
    assert taken == []
    first = [next(scores) for _ in range(5)]
    assert len(taken) == 8
    wanted = ours.predict([("a b", "c " * n) for n in range(5)], **options)
    np.testing.assert_allclose(np.array(first), wanted, atol=1e-5)
    assert isinstance(next(ours.predict(pairs(), convert_to_numpy=False)), mx.array)
    assert list(ours.predict(iter([]))) == []
    with pytest.raises(ValueError, match="expected item 5 to be a pair of strings but got"):
        list(ours.predict(iter([("a", "b")] * 5 + ["ab"])))
    with pytest.raises(ValueError, match="expected batch_size of at least 1 but got 0"):
        ours.predict(pairs(), batch_size=0)


def test_rank(folder):
    ours, theirs = CrossEncoder.from_pretrained(folder), Reference(str(folder), device="cpu")
    documents = [b for _, b in PAIRS]
    if ours.num_labels > 1:
        with pytest.raises(ValueError, match="one class to rank with but got 3"):
            ours.rank("abc", documents)
        return
    for options in ({}, {"top_k": 2, "return_documents": True}):
        got, wanted = ours.rank("abc", documents, **options), theirs.rank("abc", documents, **options)
        assert [hit["corpus_id"] for hit in got] == [hit["corpus_id"] for hit in wanted]
        assert [hit.get("text") for hit in got] == [hit.get("text") for hit in wanted]
        np.testing.assert_allclose([hit["score"] for hit in got], [hit["score"] for hit in wanted], atol=1e-5)
    assert ours.rank("abc", []) == []


def test_errors(folder, tiny_bert, tmp_path):
    with pytest.raises(ValueError, match="expected item 1 to be a pair of strings but got 'abc'"):
        CrossEncoder.from_pretrained(folder).predict([("a", "b"), "abc"])
    with pytest.raises(ValueError, match="activation_fn 'Maxout' is not supported"):
        CrossEncoder.from_pretrained(folder, activation_fn="Maxout")
    with pytest.raises(ValueError, match="no task head"):
        CrossEncoder.from_pretrained(tiny_bert)
    shutil.copytree(folder, tmp_path / "modules")
    first = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    second = {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
    (tmp_path / "modules/modules.json").write_text(json.dumps([first, second]))
    with pytest.raises(ValueError, match=r"modules behind its Transformer that are not supported: .*Dense"):
        CrossEncoder.from_pretrained(tmp_path / "modules")


def test_raw_scores(folder):
    model = CrossEncoder.from_pretrained(folder, activation_fn="Tanh")
    raw = CrossEncoder.from_pretrained(folder, activation_fn="Identity").predict(PAIRS)
    np.testing.assert_array_equal(model.predict(PAIRS, raw_scores=True), raw)
    for options in ({"activation_fn": "Tanh"}, {"apply_softmax": True}):
        with pytest.raises(ValueError, match="expected raw_scores without activation_fn and apply_softmax"):
            model.predict(PAIRS, raw_scores=True, **options)


def test_a_long_query_leaves_room_for_the_document(folder):
    query, documents = "a b c d e f g h " * 8, ["x y z", "hello world, world"]
    capped = CrossEncoder.from_pretrained(folder, max_length=24, max_query_length=5)
    wanted = CrossEncoder.from_pretrained(folder, max_length=24).predict([("a b c d e", text) for text in documents])
    np.testing.assert_array_equal(capped.predict([(query, text) for text in documents]), wanted)
    with pytest.raises(ValueError, match="expected max_query_length of at least 1 but got 0"):
        CrossEncoder.from_pretrained(folder, max_query_length=0)


@pytest.mark.parametrize("name", ["Identity", "Sigmoid", "Tanh"])
def test_saving_keeps_scores_and_activation(folder, tmp_path, name):
    model = CrossEncoder.from_pretrained(folder, activation_fn=name)
    model.save_pretrained(tmp_path / "saved")
    wanted = model.predict(PAIRS)
    np.testing.assert_array_equal(CrossEncoder.from_pretrained(tmp_path / "saved").predict(PAIRS), wanted)
    np.testing.assert_allclose(Reference(str(tmp_path / "saved"), device="cpu").predict(PAIRS), wanted, atol=1e-5)


def test_an_activation_of_ones_own_is_not_saved(folder, tmp_path, caplog):
    model = CrossEncoder.from_pretrained(folder, activation_fn=lambda x: x + 1)
    model.save_pretrained(tmp_path / "saved")
    assert "cannot be saved" in caplog.text
    saved = CrossEncoder.from_pretrained(tmp_path / "saved")
    assert saved.activation_fn is CrossEncoder.from_pretrained(folder).activation_fn


def test_a_new_classifier(folder, tiny_bert):
    has = CrossEncoder.from_pretrained(folder).num_labels
    same, other = (CrossEncoder.from_pretrained(folder, num_labels=n) for n in (has, 2))
    np.testing.assert_array_equal(same.predict(PAIRS), CrossEncoder.from_pretrained(folder).predict(PAIRS))
    assert other.predict(PAIRS).shape == (len(PAIRS), 2)
    assert CrossEncoder.from_pretrained(tiny_bert, num_labels=1).predict(PAIRS).shape == (len(PAIRS),)


def test_the_type_of_a_classifier(folder, tiny_bert, monkeypatch):
    """float16 on a GPU, but float32 where it is to be trained, unless a type is asked for."""
    monkeypatch.setattr(precision, "on_gpu", lambda: True)
    has = CrossEncoder.from_pretrained(folder).num_labels
    for source, options, wanted in (
        (folder, {}, mx.float16),
        (folder, {"num_labels": has}, mx.float32),
        (folder, {"num_labels": has + 1, "dtype": "bfloat16"}, mx.bfloat16),
        (tiny_bert, {"num_labels": 2}, mx.float32),
    ):
        model = CrossEncoder.from_pretrained(source, **options).model
        arrays = [array for _, array in tree_flatten(model.bert.parameters())]
        assert {array.dtype for array in arrays} == {wanted}, options


def test_a_classifier_of_as_many_classes_is_kept(folder):
    weights = CrossEncoder.from_pretrained(folder).model.head.state_arrays()
    has = CrossEncoder.from_pretrained(folder).num_labels
    kept, new = (CrossEncoder.from_pretrained(folder, num_labels=n).model.head.state_arrays() for n in (has, has + 1))
    assert all(mx.array_equal(kept[name], array) for name, array in weights.items())
    assert any(new[name].shape != array.shape for name, array in weights.items())


def test_a_new_classifier_over_a_sentence_encoder(minilm):
    model = CrossEncoder.from_pretrained(minilm, num_labels=1)
    assert model.predict(PAIRS[:2]).shape == (2,)
