"""When negatives are mined, with which prompts, and what fills up where too few are found."""

import pytest

from mlx_bert.core import BertCore
from mlx_bert.data.samplers import LengthBucketSampler
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.sentence_modules import Pooling
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training import hard_negatives
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.distributed import World
from mlx_bert.training.hard_negatives import HardNegatives, MinedBatches
from mlx_bert.training.sentence_data import sentence_examples

# the first two anchors are one text, whose positives are both right
PAIRS = [["the dog", "a good dog"], ["the dog", "an old dog"], ["the cat", "a good cat"], ["the book", "a book"]]
CORPUS = ["the day", "the night"]


@pytest.fixture
def mined(toy, tmp_path, monkeypatch):
    """A maker of batches whose mining finds nothing, and what each mining was given."""
    core = BertCore.from_pretrained(toy.folder)
    pooling = Pooling({"word_embedding_dimension": core.get_hidden_size(), "pooling_mode_mean_tokens": True})
    encoder = SentenceEncoder(core, Tokenizer.from_pretrained(toy.folder), [pooling])
    calls = []

    def nothing(encoder, pairs, corpus, count, **options):
        in_training = [module.training for module in (encoder.core, *encoder.modules)]
        calls.append({"corpus": corpus, "count": count, "in_training": any(in_training), **options})
        return [[] for _ in pairs]

    monkeypatch.setattr(hard_negatives, "mine_negative_texts", nothing)

    def make(name="run", seed=42, **settings):
        prompts = ("very ", "so ")
        examples, _ = sentence_examples(PAIRS, encoder.tokenizer, encoder.max_seq_length, "", "train_examples")
        args = TrainingArgs(output_dir=str(tmp_path / name), batch_size=2, seed=seed)
        chosen = HardNegatives(**{"corpus": CORPUS, **settings})
        return MinedBatches(chosen, encoder, PAIRS, examples, prompts, args, "length_buckets", World())

    return make, calls


@pytest.mark.parametrize(("every", "times"), [(0, 1), (1, 5), (2, 3)])
def test_how_often_it_is_mined(mined, every, times):
    make, calls = mined
    batches = make(every=every)
    for epoch in range(5):
        batches.batches(epoch)
    assert [call["prompts"] for call in calls] == [("very ", "so ")] * times


def test_what_mining_is_given(mined):
    make, calls = mined
    batches = make(num_negatives=2, options={"range_min": 3, "max_score": 0.5})
    for module in (batches.encoder.core, *batches.encoder.modules):
        module.train()  # as it is after an epoch
    batches.batches(1)
    expected = {"corpus": CORPUS, "count": 2, "in_training": False, "range_min": 3, "max_score": 0.5}
    assert calls == [{**expected, "prompts": ("very ", "so ")}]


def test_negatives_join_the_training_examples_alone(mined, monkeypatch):
    make, _ = mined
    batches = make()
    batches.batches()
    tokenizer = batches.encoder.tokenizer
    collate = batches.collator(list)
    for example, own in zip(collate(batches.examples), batches.negatives, strict=True):
        # with the prompt of the positives
        assert example["input_ids"][2].tolist() == tokenizer.encode([f"so {own[0]}"])[0].ids
    other, _ = sentence_examples(PAIRS, tokenizer, 16, "", "eval_examples")
    assert collate(other) == other
    # negatives count in the length
    found = [["the day"], ["the day"], ["the night"], ["the very very old city"]]
    monkeypatch.setattr(batches, "_kept_or_mined", lambda epoch: found)
    batches.ids["the very very old city"] = list(range(9))
    wanted = LengthBucketSampler([4, 4, 4, 9], 2, 42)
    for epoch in range(4):
        for batch, other in zip(batches.batches(epoch), wanted.batches(epoch), strict=True):
            assert batch.indices.tolist() == other.indices.tolist()


def test_too_few_texts_for_the_anchor_with_most_answers(mined):
    # "the dog" and its two positives leave three of the five positives and texts
    make, _ = mined
    with pytest.raises(ValueError, match="expected at least 7 texts to mine in but got 6"):
        make(num_negatives=4)
    with pytest.raises(ValueError, match="every of at least 0 but got 1 and -1"):
        HardNegatives(every=-1)


def test_what_fills_up_is_no_right_answer_and_not_twice(mined):
    batches = mined[0](num_negatives=2)
    found = []
    for epoch in range(12):
        batches.batches(epoch)
        found.append([list(own) for own in batches.negatives])
        for (anchor, positive), own in zip(PAIRS, batches.negatives, strict=True):
            right = {positive} if anchor != "the dog" else {"a good dog", "an old dog"}
            assert len(set(own)) == 2
            assert not right & set(own)
    assert any(own != found[0] for own in found)  # other ones in other epochs
    other = mined[0]("other", seed=7, num_negatives=2)
    assert [other.batches(epoch) and other.negatives for epoch in range(12)] != found  # and with other seeds
