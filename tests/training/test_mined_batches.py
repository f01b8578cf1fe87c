"""When negatives are mined, with which prompts, and what fills up where too few are found."""

import pytest

from mlx_bert.core import BertCore
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


@pytest.fixture
def mined(toy, tmp_path, monkeypatch):
    """A maker of batches whose mining finds nothing, and the prompts of each mining."""
    core = BertCore.from_pretrained(toy.folder)
    pooling = Pooling({"word_embedding_dimension": core.get_hidden_size(), "pooling_mode_mean_tokens": True})
    encoder = SentenceEncoder(core, Tokenizer.from_pretrained(toy.folder), [pooling])
    calls = []

    def nothing(encoder, pairs, corpus, count, *, prompts):
        calls.append(prompts)
        return [[] for _ in pairs]

    monkeypatch.setattr(hard_negatives, "mine_negative_texts", nothing)

    def make(name="run", **settings):
        prompts = ("query ", "text ")
        examples, _ = sentence_examples(PAIRS, encoder.tokenizer, encoder.max_seq_length, "", "train_examples")
        args = TrainingArgs(output_dir=str(tmp_path / name), batch_size=2)
        chosen = HardNegatives(**settings, corpus=["the day", "the night"])
        return MinedBatches(chosen, encoder, PAIRS, examples, prompts, args, "length_buckets", World())

    return make, calls


@pytest.mark.parametrize(("every", "times"), [(0, 1), (1, 5), (2, 3)])
def test_how_often_it_is_mined(mined, every, times):
    make, calls = mined
    batches = make(every=every)
    for epoch in range(5):
        batches.batches(epoch)
    assert calls == [("query ", "text ")] * times


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
