"""Fine-tuning a sentence encoder: what cannot be trained on, and what an earlier run left."""

import pytest
from sentence_cases import encoder_of, sentences, settings

from mlx_bert.inference.evaluators import TripletEvaluator
from mlx_bert.training.hard_negatives import HardNegatives
from mlx_bert.training.sentence import SentenceEncoderTrainer
from mlx_bert.training.sentence_losses import CoSENT, MultipleNegativesRanking, Triplet

PAIRS = [("a dog", "the dog"), ("a cat", "the cat"), ("rain", "the rain")]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, r"expected at least one example in train_examples"),
        (
            [("a dog",)],
            {},
            r"expected 2 or more texts in each row of train_examples for MultipleNegativesRanking but got 1",
        ),
        (PAIRS, {"loss": "cosent"}, r"expected a loss such as MultipleNegativesRanking\(\), made, but got 'cosent'"),
        (PAIRS, {"loss": CoSENT}, r"expected a loss such as .* but got <class"),
        (PAIRS, {"loss": CoSENT()}, r"expected a label in each row of train_examples for CoSENT but got none"),
        (PAIRS, {"loss": Triplet()}, r"expected 3 texts in each row of train_examples for Triplet but got 2"),
        (
            [*PAIRS, ("a", "b", "c")],
            {},
            r"expected the columns text_1, text_2 in every row .* row 3 has text_1, text_2",
        ),
        ([{"text": "a", "other": 3}], {}, r"expected text in other of row 0 of train_examples but got 3"),
        (["a dog"], {}, r"row 0 has no text"),
        ([{"a": "x", "b": "y", "score": 1.0}, {"a": "x", "b": "y"}], {}, r"a, b and a label in every row"),
        (PAIRS, {"prompts": {"query": "q"}}, r"expected prompts for the columns text_1, text_2 but got one for query"),
        (PAIRS, {"batch_sampler": "shuffled"}, r"expected batch_sampler to be one of length_buckets, no_duplicates"),
        (PAIRS, {"eval_examples": [("a", "b")], "loss": Triplet()}, r"expected 3 texts in each row of train_examples"),
        (PAIRS, {"eval_examples": [("a",)]}, r"expected 2 or more texts in each row of eval_examples"),
        (sentences(4), {"hard_negatives": HardNegatives()}, r"rows of an anchor and a positive but got 3 texts"),
        (PAIRS, {"hard_negatives": HardNegatives(num_negatives=2)}, r"expected at least 4 texts to mine in but got 3"),
    ],
)
def test_errors(tiny_bert_folder, tmp_path, rows, options, message):
    options = {"loss": MultipleNegativesRanking(), **options}
    with pytest.raises(ValueError, match=message):
        SentenceEncoderTrainer(encoder_of(tiny_bert_folder), settings(tmp_path), rows, **options)


def test_other_errors(tiny_bert_folder, tmp_path):
    with pytest.raises(ValueError, match=r"\[HardNegatives\] expected num_negatives of at least 1"):
        HardNegatives(num_negatives=0)
    trainer = SentenceEncoderTrainer(
        encoder_of(tiny_bert_folder), settings(tmp_path), PAIRS, loss=MultipleNegativesRanking()
    )
    with pytest.raises(ValueError, match="expected examples to evaluate on but got none"):
        trainer.evaluate()
    evaluator = TripletEvaluator(["a dog"], ["the dog"], ["rain"])
    trainer = SentenceEncoderTrainer(
        encoder_of(tiny_bert_folder), settings(tmp_path, metric="loss"), PAIRS,
        loss=MultipleNegativesRanking(), evaluator=evaluator,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"expected metric to be one of cosine_accuracy.* but got 'loss'"):
        trainer.train()


def test_a_new_run_forgets_what_was_mined_before(tiny_bert_folder, tmp_path):
    (tmp_path / "hard_negatives").mkdir()
    (tmp_path / "hard_negatives/epoch_0.json").write_text('{"negatives": []}')
    trainer = SentenceEncoderTrainer(
        encoder_of(tiny_bert_folder), settings(tmp_path, epochs=1), PAIRS, loss=MultipleNegativesRanking(),
        hard_negatives=HardNegatives(),
    )  # fmt: skip
    trainer.train()
    assert len(trainer.feed.sampler.negatives) == 3
