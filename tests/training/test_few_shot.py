"""A classifier from a few examples: it learns, predicts as scikit-learn does, and is loaded again."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

from mlx_bert.data.contrastive_pairs import contrastive_pairs
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.training import few_shot
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.few_shot import CONFIG, FewShotClassifier
from mlx_bert.training.sentence_losses import CosineSimilarity

GOOD, BAD = ("good", "great", "happy"), ("bad", "awful", "sad")
THINGS = ("dog", "cat", "film", "book", "city", "house", "bird", "tree")


def examples(count, classes=2, seed=0):
    random = np.random.default_rng(seed)
    words = (GOOD, BAD, ("red", "blue", "green"))[:classes]
    texts = [f"the {random.choice(THINGS)} is {random.choice(words[n % classes])}" for n in range(count)]
    return texts, [("good", "bad", "colour")[n % classes] for n in range(count)]


def args(folder, **options):
    return {"output_dir": str(folder), "progress": False, "learning_rate": 3e-3, **options}


def accuracy(classifier, count=40, classes=2):
    texts, labels = examples(count, classes, seed=9)
    return np.mean([a == b for a, b in zip(classifier.predict(texts), labels, strict=True)])


def test_it_learns_from_eight_per_class_is_saved_and_loaded(tiny_bert_folder, tmp_path):
    classifier = FewShotClassifier(SentenceEncoder.from_pretrained(tiny_bert_folder))
    texts, labels = examples(16)
    result = classifier.fit(texts, labels, args(tmp_path / "run", epochs=2, learning_rate=5e-3))
    assert result.steps == 2 * 8  # 56 pairs of a class and 64 of two: 128 pairs in batches of 16
    assert accuracy(classifier) == 1
    probabilities = classifier.predict_proba(texts)
    assert probabilities.shape == (16, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert classifier.predict(texts[0]) == "good"
    classifier.save_pretrained(tmp_path / "saved")
    loaded = FewShotClassifier.from_pretrained(tmp_path / "saved")
    assert loaded.labels == ["bad", "good"]
    np.testing.assert_allclose(loaded.predict_proba(texts), probabilities, atol=1e-6)
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, classifier.encoder.encode(texts), atol=1e-5)
    with pytest.raises(FileExistsError):
        classifier.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_scikit_learns(tiny_bert_folder, tmp_path, classes):
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    classifier = FewShotClassifier(encoder, normalize_embeddings=True)
    texts, labels = examples(24, classes)
    assert classifier.fit(texts, labels, {"epochs": 0}, regularization=10) is None
    embeddings = encoder.encode(texts, normalize_embeddings=True)
    reference = LogisticRegression(C=10, max_iter=1000).fit(embeddings, labels)
    assert classifier.labels == list(reference.classes_)
    np.testing.assert_allclose(classifier.predict_proba(texts), reference.predict_proba(embeddings), atol=1e-5)
    classifier.save_pretrained(tmp_path / "saved")
    loaded = FewShotClassifier.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(loaded.predict_proba(texts), classifier.predict_proba(texts), atol=1e-6)
    classifier.weight = 1e6 * classifier.weight  # whose powers no float holds
    assert np.isfinite(classifier.predict_proba(texts)).all()


def test_what_the_encoder_is_trained_with(tiny_bert_folder, tmp_path, monkeypatch):
    given = []

    class Trainer:
        def __init__(self, encoder, args, pairs, *, loss, callbacks):
            given.append([args, pairs, loss, callbacks])

        def train(self, resume):
            given[-1].append(resume)

    monkeypatch.setattr(few_shot, "SentenceEncoderTrainer", Trainer)
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    texts, labels = examples(8)
    options = {"sampling": "undersampling", "num_iterations": 2, "max_pairs": 9}
    whole = TrainingArgs(output_dir=str(tmp_path), seed=5, max_length=9)
    for args in (None, {"seed": 5, "batch_size": 3}, whole):
        FewShotClassifier(encoder).fit(texts, labels, args, **options, callbacks=["own"], resume="folder")
        seed = 42 if args is None else 5
        pairs = contrastive_pairs(texts, labels, "undersampling", 2, 9, seed)
        assert given[-1][1:] == [pairs, CosineSimilarity(), ["own"], "folder"]
    defaults, changed, own = (each[0] for each in given)
    assert (defaults.batch_size, defaults.learning_rate, defaults.max_length) == (16, 2e-5, encoder.max_seq_length)
    assert (changed.batch_size, changed.learning_rate, changed.seed) == (3, 2e-5, 5)
    assert own == whole


def test_a_resumed_fit_equals_the_uninterrupted_one(tiny_bert_folder, tmp_path):
    texts, labels = examples(8)

    def fit(name, resume=False):
        classifier = FewShotClassifier(SentenceEncoder.from_pretrained(tiny_bert_folder))
        settings = args(tmp_path / name, epochs=2, save_every="1", keep_checkpoints=0)
        classifier.fit(texts, labels, settings, resume=resume)
        return classifier.predict_proba(texts)

    whole = fit("whole")
    np.testing.assert_array_equal(fit("again", resume=tmp_path / "whole" / "checkpoint_1"), whole)


def test_it_is_fitted_again(tiny_bert_folder, tmp_path):
    """On more examples, with the settings as they were; the folders of the fits before stay as they are."""
    classifier = FewShotClassifier(SentenceEncoder.from_pretrained(tiny_bert_folder))
    found = []
    for count in (4, 6, 8):
        found.append(classifier.fit(*examples(count), args(tmp_path / "run")).output_dir)
    assert [folder.name for folder in found] == ["run", "run-2", "run-3"]
    assert all((folder / "final_model").is_dir() for folder in found)
    another = FewShotClassifier(classifier.encoder)
    with pytest.raises(FileExistsError, match=r"run has results of another run\. Choose another folder"):
        another.fit(*examples(4), args(tmp_path / "run"))


def test_errors(tiny_bert_folder, tmp_path):
    classifier = FewShotClassifier(SentenceEncoder.from_pretrained(tiny_bert_folder))
    for call in (lambda: classifier.predict(["a"]), lambda: classifier.save_pretrained(tmp_path / "x")):
        with pytest.raises(ValueError, match="expected a trained classifier but this one has no weights"):
            call()
    with pytest.raises(ValueError, match="expected at least 2 classes but got 1"):
        classifier.fit(["a", "b"], ["x", "x"])
    with pytest.raises(ValueError, match="expected regularization above 0 but got 0"):
        classifier.fit_head(["a", "b"], ["x", "y"], 0)
    with pytest.raises(FileNotFoundError, match=f"has no {CONFIG}.* for a new classifier, FewShotClassifier"):
        FewShotClassifier.from_pretrained(tiny_bert_folder)
    (tmp_path / "model_head.pkl").touch()
    with pytest.raises(ValueError, match=r"classifier in model_head\.pkl, a pickle"):
        FewShotClassifier.from_pretrained(tmp_path)
