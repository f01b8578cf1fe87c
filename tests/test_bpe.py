"""Byte-level BPE: training, files, text to ids and back."""

import json
import random
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import regex
import transformers

from mlx_bert.bpe import PATTERN, ByteLevelBPE, read_parts
from mlx_bert.tokenizer import Tokenizer

CORPUS = [
    "The old river runs slowly through the city, and the city doesn't sleep.",
    "It's raining again: we're reading 12 old books and 120 new ones, they've said.",
    "A running dog, a reading cat; the rain, the rainy days, the running rain!",
    "naïve café 中文 東京 😀😀 mañana déjà vu",
] * 3
TRICKY = [
    "",
    " ",
    "é",
    "中",
    "😀",
    "e\u0301 \u200d👩‍👩‍👧 \U0001f1e9\U0001f1ea",
    "don't DON'T 'tis 6pm 1,000.50 snake_case __init__ a\tb\r\n\n  c   ",
    "'s't're've'm'll'd ''''",
    "x²½Ⅷ٣ \u2028\u00a0\u3000\x00\x1c end",
    "[CLS] [PAD] literally",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


@pytest.fixture(scope="module")
def bpe() -> ByteLevelBPE:
    """Read only."""
    return ByteLevelBPE.train(CORPUS, vocab_size=340)


def merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace a pair of neighbours, from the left."""
    merged, at = [], 0
    while at < len(ids):
        if tuple(ids[at : at + 2]) == pair:
            merged.append(new)
            at += 2
        else:
            merged.append(ids[at])
            at += 1
    return merged


def test_every_merge_takes_a_most_frequent_pair(bpe):
    pieces = Counter(piece for text in CORPUS for piece in regex.findall(PATTERN, text))
    words = [(list(piece.encode()), count) for piece, count in pieces.items()]
    assert len(bpe.merges) == 340 - 258
    for number, pair in enumerate(bpe.merges):
        counts = Counter()
        for ids, count in words:
            for neighbours in pairwise(ids):
                counts[neighbours] += count
        assert counts[pair] == max(counts.values()), number
        words = [(merge(ids, pair, 256 + number), count) for ids, count in words]


def test_encoding_applies_the_merges_in_order(bpe):
    rng = random.Random(0)
    letters = [*"therainsoldcy 'é中😀12,.\n"]
    texts = [*CORPUS, *TRICKY, *("".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(200))]
    for text in texts:
        wanted = [list(piece.encode()) for piece in regex.findall(PATTERN, text)]
        for number, pair in enumerate(bpe.merges):
            wanted = [merge(ids, pair, 256 + number) for ids in wanted]
        assert bpe.encode(text) == wanted


@pytest.mark.parametrize("text", [*TRICKY, *CORPUS[:4]])
def test_nothing_is_lost(bpe, text):
    pieces = bpe.pieces(text)
    assert "".join(piece for piece, _, _ in pieces) == text
    assert all(text[start:end] == piece for piece, start, end in pieces)
    assert [piece for piece, _, _ in pieces] == regex.findall(PATTERN, text)
    ids = bpe.encode(text)
    assert len(ids) == len(pieces)
    assert [bpe.decode(piece) for piece in ids] == [piece for piece, _, _ in pieces]
    assert bpe.decode(ids) == bpe.decode([number for piece in ids for number in piece]) == text
    assert bpe.decode(bpe.tokenize(text)) == text


def test_ids(bpe):
    assert (bpe.vocab_size, bpe.pad_id, bpe.cls_id) == (340, 338, 339)
    assert ByteLevelBPE([]).encode("é!") == [[0xC3, 0xA9], [0x21]]
    assert bpe.decode([0xC3]) == "\ufffd"
    assert bpe.decode([bpe.cls_id, 0x41, bpe.pad_id]) == "A"
    shorter = sum(len(piece) for text in CORPUS for piece in bpe.encode(text))
    assert shorter < 0.7 * sum(len(text.encode()) for text in CORPUS)


def test_rows_of_ids(bpe):
    flat = [number for piece in bpe.encode(CORPUS[0]) for number in piece]
    assert bpe.tokenize(CORPUS[0]) == [bpe.cls_id, *flat]
    assert bpe.tokenize(CORPUS[0], max_length=5) == [bpe.cls_id, *flat[:4]]
    assert len(bpe.tokenize("xq " * 1000)) == 512
    batch = bpe.batch_encode([CORPUS[0], "", CORPUS[1]], max_length=20)
    assert batch.input_ids.shape == (3, 20)
    ids, mask = np.array(batch.input_ids), np.array(batch.attention_mask)
    assert ids[0].tolist() == bpe.tokenize(CORPUS[0], 20)
    assert ids[1].tolist() == [bpe.cls_id] + [bpe.pad_id] * 19
    assert mask.tolist() == [[True] * 20, [True] + [False] * 19, [True] * 20]
    assert bpe.batch_encode(["a b", "b a"]).attention_mask is None


def test_training_is_deterministic():
    first = ByteLevelBPE.train(CORPUS, vocab_size=360)
    for _ in range(3):
        assert ByteLevelBPE.train(iter(CORPUS), vocab_size=360).merges == first.merges
    assert ByteLevelBPE.train(CORPUS, vocab_size=340).merges == first.merges[: 340 - 258]


def test_too_little_text(caplog):
    small = ByteLevelBPE.train(["ab ab"], vocab_size=300)
    assert small.merges == [(97, 98)]
    assert (small.vocab_size, small.pad_id, small.cls_id) == (259, 257, 258)
    assert "pairs for 259 ids only, not 300" in caplog.text


def test_files_are_read_in_parts_that_cut_no_piece(tmp_path):
    text = "\r\n".join(CORPUS) + "  don't  " + "中文" * 30 + "\n\n\n  the end "
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.encode())
    whole = regex.findall(PATTERN, text)
    for size in (1, 7, 50, 10_000):
        parts = list(read_parts(path, size))
        assert "".join(parts) == text
        assert [piece for part in parts for piece in regex.findall(PATTERN, part)] == whole
    assert len(list(read_parts(path, 50))) > 10
    assert ByteLevelBPE.train_from_files(path, 340).merges == ByteLevelBPE.train([text], 340).merges
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="is not UTF-8"):
        ByteLevelBPE.train_from_files([path])
    with pytest.raises(FileNotFoundError, match=r"lost\.txt does not exist"):
        ByteLevelBPE.train_from_files([path, tmp_path / "lost.txt"])


@pytest.mark.parametrize(
    "line", ["春眠不覚暁。\n", "one, two!\t", "7\u3000", "a.\r\n", "x\x1c \x1d; y\x0b", "…\x85 -\xa0?\u2003\u1680"]
)
def test_parts_end_after_any_character(tmp_path, line):
    text, path = line * 60, tmp_path / "t.txt"
    path.write_bytes(text.encode())
    for size in (1, 7, 40):
        parts = list(read_parts(path, size))
        assert "".join(parts) == text
        assert [piece for part in parts for piece in regex.findall(PATTERN, part)] == regex.findall(PATTERN, text)
        assert max(map(len, parts)) <= size + len(line)


def test_a_file_trains_as_its_text_does(tmp_path, monkeypatch):
    text, path = "春眠不覚暁。\n処処聞啼鳥。\n Don't, they're 12.5 km!\u3000(off)\n\n" * 30, tmp_path / "t.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr("mlx_bert.bpe.read_parts", lambda path: read_parts(path, 50))
    assert ByteLevelBPE.train_from_files(path, 330).merges == ByteLevelBPE.train([text], 330).merges


def test_text_without_a_place_to_cut_is_searched_once(tmp_path, monkeypatch):
    path, looked = tmp_path / "t.txt", []
    path.write_text("春" * 2000)
    monkeypatch.setattr("mlx_bert.bpe._ends_before", lambda text, at: looked.append(at))
    assert len(list(read_parts(path, 10))) == 1
    assert len(looked) <= 2000


def test_the_file(bpe, tmp_path):
    bpe.save(tmp_path / "bpe_merged.json")
    saved = json.loads((tmp_path / "bpe_merged.json").read_text())
    assert list(saved.values()) == list(range(256, 338))
    first, second = bpe.merges[0]
    assert saved[f"({first},{second})"] == 256
    assert ByteLevelBPE.from_file(tmp_path).merges == bpe.merges
    # others write tuples with a space, in any order
    shuffled = {key.replace(",", ", "): saved[key] for key in sorted(saved)}
    (tmp_path / "other.json").write_text(json.dumps(shuffled))
    assert ByteLevelBPE.from_file(tmp_path / "other.json").merges == bpe.merges


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\"__import__('os').system('true')\": 256}", "expected entries"),
        ('{"(97,98)": "256"}', "expected entries"),
        ('{"(97,98)": 256, "(98,97)": 256}', "each id once"),
        ('{"(97,98)": 257}', "expected the ids 256 to 256"),
        ('{"(97,300)": 256}', re.escape("expected id 256 to join two smaller ids but got (97, 300)")),
        ('{"(97,98)": 256, "(256,99)": 257, "(98,99)": 258, "(97,258)": 259}', r"b'abc' twice \(ids 257 and 259\)"),
        ("[1]", "to hold a JSON object"),
    ],
)
def test_files_that_cannot_be_used(content, message, tmp_path):
    (tmp_path / "bpe_merged.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ByteLevelBPE.from_file(tmp_path)


def test_other_tokenizers_read_it(bpe, tmp_path):
    bpe.save_pretrained(tmp_path)
    texts = [text for text in [*TRICKY, *CORPUS[:4]] if "[CLS]" not in text]
    ours = Tokenizer.from_pretrained(tmp_path)
    assert (ours.pad_id, ours.max_length) == (bpe.pad_id, 512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, encoding in zip(texts, ours.encode(texts), strict=True):
        assert encoding.ids == theirs(text)["input_ids"] == bpe.tokenize(text)
        assert ours.fast.decode(encoding.ids) == text
    assert len(theirs) == bpe.vocab_size
    batch, padded = bpe.batch_encode(texts), ours(texts)
    assert np.array_equal(batch.input_ids, padded.input_ids)
    assert np.array_equal(batch.attention_mask, padded.attention_mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bpe: bpe.train(CORPUS, 257), "expected vocab_size of at least 258 but got 257"),
        (lambda bpe: bpe.train("a text"), "expected several texts but got a single one"),
        (lambda bpe: bpe.train(["a", 1]), "expected a text but got int"),
        (lambda bpe: bpe.decode([400]), "expected ids from 0 to 339 but got 400"),
        (lambda bpe: bpe.tokenize("a", 0), "expected max_length of at least 1 but got 0"),
        (lambda bpe: bpe.encode("a\ud800"), "a lone surrogate at 1"),
        (lambda bpe: bpe.encode(b"a"), "expected a text but got bytes"),
        (lambda bpe: bpe.batch_encode("text"), "expected a list of at least one text but got 'text'"),
        (lambda bpe: bpe.batch_encode([]), "expected a list of at least one text"),
    ],
)
def test_wrong_input(bpe, call, message):
    with pytest.raises(ValueError, match=message):
        call(bpe)
