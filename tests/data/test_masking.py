"""What is masked: how much, which tokens, whole words of every kind of tokenizer, and always the same."""

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mlx_bert.data.collate import Collator
from mlx_bert.data.masking import (
    NO_WORD,
    EpochSampler,
    Masking,
    MaskingCollator,
    choose_places,
    mask_token_id,
    special_ids,
    text_rows,
    word_numbers,
)
from mlx_bert.tokenizer import Tokenizer

CORPUS = ["unbelievable stories about walking elephants", "the elephants were walking", "antidisestablishment"] * 4
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]


def wordpiece(folder):
    return Tokenizer.from_pretrained(folder)


def trained(model, trainer, pre_tokenizer):
    fast = FastTokenizer(model)
    fast.pre_tokenizer = pre_tokenizer
    fast.train_from_iterator(CORPUS, trainer)
    ends = [(token, fast.token_to_id(token)) for token in ("<s>", "</s>")]
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    return Tokenizer(fast, "<pad>", 32)


def byte_level():
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    return trained(models.BPE(unk_token="<unk>"), trainer, pre_tokenizers.ByteLevel(add_prefix_space=True))


def sentencepiece(split=True):
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made = trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(split=split))
    made.fast.decoder = decoders.Metaspace()
    return made


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "sentencepiece", "sentencepiece without a split"])
def test_words_of_every_tokenizer(tiny_bert_folder, kind):
    tokenizer = {
        "wordpiece": lambda: wordpiece(tiny_bert_folder),
        "byte-level": byte_level,
        "sentencepiece": sentencepiece,
        "sentencepiece without a split": lambda: sentencepiece(split=False),
    }[kind]()
    (encoding,) = tokenizer.encode(["walking elephants were stories"])
    numbers = word_numbers(encoding, special_ids(tokenizer))
    assert numbers[0] == numbers[-1] == NO_WORD
    words = ["".join(encoding.tokens[place].strip("▁Ġ").removeprefix("##") for place in np.flatnonzero(numbers == n))
             for n in range(numbers.max() + 1)]  # fmt: skip
    assert words == ["walking", "elephants", "were", "stories"]
    assert len(encoding) > 4 + 2  # some word has several tokens


def test_special_tokens_in_the_text_are_no_words(tiny_bert_folder):
    tokenizer = wordpiece(tiny_bert_folder)
    (row,) = text_rows(["the [MASK] dog [SEP] sleeps"], tokenizer)
    special = np.isin(row["input_ids"], list(special_ids(tokenizer)))
    assert special.sum() == 4
    np.testing.assert_array_equal(row["words"] == NO_WORD, special)


def rows_of(count, length, seed=0):
    """Rows of words of 1 to 4 tokens between two special ones."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        words = np.repeat(np.arange(length), random.integers(1, 5, length))[: length - 2]
        frame = np.array([NO_WORD])
        ids = np.concatenate([[2], random.integers(5, 130, length - 2), [3]]).astype(np.int32)
        words = np.concatenate([frame, words, frame]).astype(np.int32)
        made.append({"words": words, "input_ids": ids, "index": index})
    return made


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_rates(tiny_bert_folder, whole, probability):
    tokenizer = wordpiece(tiny_bert_folder)
    collator = MaskingCollator(Collator(0), tokenizer, Masking(probability=probability, whole_words=whole))
    counts = np.zeros(5)
    replaced = []
    for row in rows_of(800, 66):
        ids, places = collator.masked(row)
        before, after = row["input_ids"][places], ids[places]
        assert (row["words"][places] != NO_WORD).all()
        others = np.setdiff1d(np.arange(66), places)
        np.testing.assert_array_equal(ids[others], row["input_ids"][others])
        if whole:
            for word in np.unique(row["words"][places]):
                assert set(np.flatnonzero(row["words"] == word)) <= set(places)
        is_mask = after == collator.mask_id
        changed = (after != before) & ~is_mask
        counts += [len(places), 64, is_mask.sum(), changed.sum(), (after == before).sum()]
        replaced += after[changed].tolist()
    chosen, total, masked, changed, kept = counts
    # three standard deviations of a share of 7,600 tokens are 0.014 for 0.8 and 0.011 for 0.1
    assert chosen / total == pytest.approx(probability, abs=0.006 if whole else 0.003)
    assert masked / chosen == pytest.approx(0.8, abs=0.015)
    assert changed / chosen == pytest.approx(0.1, abs=0.012)
    assert kept / chosen == pytest.approx(0.1, abs=0.012)
    assert not set(replaced) & special_ids(tokenizer)
    assert len(set(replaced)) > 0.8 * len(collator.vocabulary)


def test_every_place_is_as_likely_as_another():
    words = np.array([NO_WORD, *range(20), NO_WORD])
    random = np.random.default_rng(0)
    hits = np.zeros(len(words))
    for _ in range(2000):
        hits[choose_places(words, Masking(), random)] += 1
    assert hits[0] == hits[-1] == 0
    np.testing.assert_allclose(hits[1:-1] / 2000, 0.15, atol=0.03)


def test_a_word_longer_than_the_share_is_still_masked():
    words = np.array([NO_WORD, 0, 0, 0, 0, NO_WORD])
    assert choose_places(words, Masking(), np.random.default_rng(0)).tolist() == [1, 2, 3, 4]


def test_the_mask_is_a_function_of_seed_epoch_and_row(tiny_bert_folder):
    tokenizer = wordpiece(tiny_bert_folder)
    rows = text_rows(["the dog sleeps slowly and the cat walks today, never quickly"] * 6, tokenizer)

    def masked(seed, epoch, fixed=False):
        collator = MaskingCollator(Collator(0), tokenizer, Masking(probability=0.4), seed)
        sampler = EpochSampler(collator, [len(row["input_ids"]) for row in rows], 4, seed)
        batches = sampler.batches(epoch)
        found = {}
        for batch in batches[:: 1 if epoch else -1]:
            collated = collator([{**rows[i], "fixed": fixed} for i in batch.indices])
            for place, index in enumerate(batch.indices):
                found[int(index)] = np.array(collated["input_ids"])[place].tolist()
        return found

    assert masked(1, 3) == masked(1, 3)
    assert len({tuple(ids) for ids in masked(1, 3).values()}) > 3
    for other in (masked(2, 3), masked(1, 4)):
        assert sum(other[i] != masked(1, 3)[i] for i in range(6)) >= 4
    assert masked(1, 0, fixed=True) == masked(1, 5, fixed=True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches(tiny_bert_folder, side):
    tokenizer = wordpiece(tiny_bert_folder)
    tokenizer.padding_side = side
    rows = text_rows(["the dog sleeps slowly and the cat walks today, never quickly", "rain"], tokenizer)
    collator = MaskingCollator(Collator(0, side), tokenizer, Masking(probability=0.4, mask_share=1, random_share=0),
                               multiple=8)  # fmt: skip
    batch = collator(rows)
    ids, positions, labels = (np.array(batch[name]) for name in ("input_ids", "positions", "labels"))
    assert positions.shape == labels.shape == (2, 8)
    assert (labels[1] != -100).sum() == 1
    for number, row in enumerate(rows):
        real = labels[number] != -100
        assert (ids[number, positions[number, real]] == mask_token_id(tokenizer)).all()
        restored = ids[number].copy()
        restored[positions[number, real]] = labels[number, real]
        mask = np.array(batch["attention_mask"])[number]
        np.testing.assert_array_equal(restored[mask], row["input_ids"])


def test_long_texts_and_empty_ones(tiny_bert_folder):
    tokenizer = wordpiece(tiny_bert_folder)
    rows = text_rows(["the dog " * 20, "", "  ", "rain"], tokenizer, max_length=18)
    assert [len(row["input_ids"]) for row in rows] == [18, 18, 10, 3]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]


def test_packed_rows_are_full_and_lose_nothing(tiny_bert_folder):
    tokenizer = wordpiece(tiny_bert_folder)
    texts = ["the dog sleeps", "", "rain " * 30, "a happy cat !"] * 3
    rows = text_rows(texts, tokenizer, max_length=20, packed=True)
    assert {len(row["input_ids"]) for row in rows[:-1]} == {20}
    cls, sep = (tokenizer.fast.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    assert all(row["input_ids"][0] == cls and row["input_ids"][-1] == sep for row in rows)
    stream = np.concatenate([row["input_ids"][1:-1] for row in rows])
    wanted = []
    for text in texts:
        if text:
            wanted += [*tokenizer.encode([text], max_length=60)[0].ids[1:-1], sep]
    assert stream.tolist() == wanted[:-1]
    for row in rows:
        np.testing.assert_array_equal(row["words"] == NO_WORD, np.isin(row["input_ids"], [cls, sep]))


def test_errors(tiny_bert_folder):
    tokenizer = wordpiece(tiny_bert_folder)
    with pytest.raises(ValueError, match="expected texts with tokens to mask but got none"):
        text_rows(["", " "], tokenizer)
    with pytest.raises(ValueError, match="max_length above 2, the number of special tokens, but got 2"):
        text_rows(["a"], tokenizer, max_length=2)
    with pytest.raises(ValueError, match=r"expected probability in \(0, 1\) but got 0"):
        Masking(probability=0)
    with pytest.raises(ValueError, match=r"add up to at most 1 but got 0\.8 and 0\.3"):
        Masking(random_share=0.3)
    plain = FastTokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="expected a tokenizer with a mask token"):
        text_rows(["a"], Tokenizer(plain))
    masked = FastTokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "[UNK]": 2, "[MASK]": 3}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="expected max_length, the tokens of a packed row"):
        text_rows(["a"], Tokenizer(masked), packed=True)
    assert dataclasses.asdict(Masking())["probability"] == 0.15
