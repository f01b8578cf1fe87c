"""Groups of texts and windows with a frozen encoder: its outputs are kept, and training is what it is without."""

import logging
import threading
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlx_bert.core import BertCore
from mlx_bert.data.alignment import tag_windows
from mlx_bert.data.collate import Collator, ListCollator, PartsCollator, tokenize_examples
from mlx_bert.data.questions import question_windows
from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.sentence_modules import Dense, Normalize, Pooling
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.cross_encoder import CrossEncoderTrainer
from mlx_bert.training.encoder_cache import cache_encoder, cache_on_disk, can_cache, different_texts
from mlx_bert.training.hard_negatives import HardNegatives
from mlx_bert.training.long_texts import QuestionObjective, TaggingObjective, WindowCollator, numbered
from mlx_bert.training.masked_lm import MaskedLMTrainer, load_masked_lm
from mlx_bert.training.optimizers import GroupedOptimizer
from mlx_bert.training.sentence import SentenceEncoderTrainer
from mlx_bert.training.sentence_losses import Cached, MultipleNegativesRanking, Triplet
from mlx_bert.training.step import flat_parameters
from mlx_bert.training.trainer import Trainer

WORDS = ("the", "movie", "book", "food", "day", "night", "city", "house", "dog", "cat", "very", "so")
MOODS = ("happy", "sad", "angry")
TAGS = ["O", "B-MOOD"]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder):
    return Tokenizer.from_pretrained(tiny_bert_folder)


def text(random, least=1, most=6):
    return " ".join(random.choice(WORDS, random.integers(least, most + 1)))


def documents(random, count):
    return [text(random) for _ in range(count)]


def with_head(folder, head, **options):
    mx.random.seed(3)
    return create_bert_with_head(bert_name=folder, head_type=head, dropout_prob=0.1, **options)


def choices(folder, tokenizer, args, random):
    rows = [{"text": text(random), "choices": documents(random, 3), "labels": n % 3} for n in range(20)]
    model, collate = with_head(folder, "multiple_choice", num_labels=1), Collator(tokenizer.pad_id, exact=True)
    return Trainer(model, args, rows[:14], rows[14:], tokenizer, collate)


def ranking(folder, tokenizer, args, random):
    """Lists of different lengths."""
    rows = []
    for number in range(20):
        count = 2 + number % 3
        labels = [float(n == number % count) for n in range(count)]
        rows.append({"text": text(random), "choices": documents(random, count), "labels": labels})
    collate = ListCollator(tokenizer.pad_id, exact=True)
    return Trainer(with_head(folder, "ranking", num_labels=1), args, rows[:14], rows[14:], tokenizer, collate)


def contrastive(folder, tokenizer, args, random):
    """Triplets for a head; each anchor stands in two of them."""
    anchors = documents(random, 10)
    texts = [[anchors[n // 2], *documents(random, 2)] for n in range(20)]
    encoded = [[np.array(e.ids, dtype=np.int32) for e in tokenizer.encode(row)] for row in texts]
    rows = [{"input_ids": row, "token_type_ids": [0 * ids for ids in row], "labels": 0} for row in encoded]
    model = with_head(folder, "contrastive", num_labels=16)
    return Trainer(model, args, rows[:14], rows[14:], tokenizer)


def sentences(folder, tokenizer, args, random, loss=None, texts=3):
    """Triplets, each part padded by itself, with a prompt, for the dense layer behind the encoder."""
    mx.random.seed(3)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": False}
    dense = {"in_features": 32, "out_features": 16, "activation_function": "torch.nn.modules.activation.Tanh"}
    modules = [Pooling(pooling), Dense(dense), Normalize()]
    encoder = SentenceEncoder(BertCore.from_pretrained(folder), tokenizer, modules)
    rows = [tuple(documents(random, texts)) for _ in range(20)]
    return SentenceEncoderTrainer(encoder, args, rows[:14], rows[14:], loss=loss or Triplet(), prompts="find : ")


def chunked_sentences(folder, tokenizer, args, random):
    return sentences(folder, tokenizer, args, random, Cached(MultipleNegativesRanking(), 3), 2)


def cross_encoder(folder, tokenizer, args, random):
    rows = []
    for number in range(20):
        count = 2 + number % 3
        rows.append({"query": text(random), "documents": documents(random, count), "labels": [1, *[0] * (count - 1)]})
    mx.random.seed(3)
    model = CrossEncoder.from_pretrained(folder, num_labels=1)
    return CrossEncoderTrainer(model, args, rows[:14], rows[14:], "listnet")


def questions(folder, tokenizer, args, random):
    rows = []
    for number in range(16):
        words = [*random.choice(WORDS, 20)]
        words.insert(random.integers(20), MOODS[number % 3])
        context, answer = " ".join(words), MOODS[number % 3]
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
        rows.append({"question": "the day", "context": context, "answers": answers, "line": number + 1})
    measured = numbered(question_windows(rows[10:], tokenizer, 14, 3, True))
    return Trainer(
        with_head(folder, "question_answering"), args, question_windows(rows[:10], tokenizer, 14, 3), measured,
        tokenizer, WindowCollator(tokenizer.pad_id, exact=True), QuestionObjective(measured),
    )  # fmt: skip


def tags(folder, tokenizer, args, random, **options):
    rows = []
    for _ in range(16):
        tokens = [*random.choice([*WORDS, *MOODS], random.integers(8, 24))]
        rows.append({"tokens": tokens, "tags": [TAGS[word in MOODS] for word in tokens], "text": " ".join(tokens)})
    measured = numbered(tag_windows(rows[10:], tokenizer, TAGS, 12, 3))
    train = tag_windows(rows[:10], tokenizer, TAGS, 12, 3, bool(options))
    return Trainer(
        with_head(folder, "token_classification", num_labels=2, **options), args, train, measured, tokenizer,
        WindowCollator(tokenizer.pad_id, exact=True), TaggingObjective(measured, rows[10:], TAGS),
    )  # fmt: skip


def crf_tags(*given):
    return tags(*given, use_crf=True)


KINDS = [choices, ranking, contrastive, sentences, chunked_sentences, cross_encoder, questions, tags,
         crf_tags]  # fmt: skip


def arguments(path, **changes):
    base = {"epochs": 2, "batch_size": 4, "freeze": "backbone", "head_learning_rate": 1e-2, "save_every": "no"}
    return TrainingArgs(**{"output_dir": str(path), "progress": False, "metric": "loss", **base, **changes})


def trained(kind, folder, tokenizer, path, **changes):
    trainer = kind(folder, tokenizer, arguments(path, **changes), np.random.default_rng(0))
    before = {name: np.array(array) for name, array in flat_parameters(trainer.model).items()}
    result = trainer.train()
    curve = [record["loss"] for record in result.history["steps"]]
    curve += [value for record in result.history["epochs"] for value in (record["eval_loss"], record["train_loss"])]
    after = {name: np.array(array) for name, array in flat_parameters(trainer.model).items()}
    return trainer, np.array(curve), after, {name: after[name] - before[name] for name in after if name in before}


def texts_that_ran(monkeypatch):
    """What the encoder reads from now on: the ids and types of each row, without padding."""
    seen, call = [], BertCore.__call__

    def recorded(self, input_ids, attention_mask=None, token_type_ids=None, **options):
        mask = np.ones(input_ids.shape, bool) if attention_mask is None else np.array(attention_mask)
        types = np.zeros(mask.shape, int) if token_type_ids is None else np.array(token_type_ids)
        for row, real, kinds in zip(np.array(input_ids), mask, types, strict=True):
            seen.append((*row[real].tolist(), -1, *kinds[real].tolist()))
        return call(self, input_ids, attention_mask, token_type_ids=token_type_ids, **options)

    monkeypatch.setattr(BertCore, "__call__", recorded)
    return seen


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_training_is_what_it_is_without_and_each_text_runs_once(
    kind, tiny_bert_folder, tokenizer, tmp_path, monkeypatch
):
    # Adam would make the rounding of a gradient that is 0, such as that of a bias before a softmax, as large as any
    monkeypatch.setattr(GroupedOptimizer, "apply", lambda self, gradients, parameters: {
        name: array - 0.3 * gradients[name] for name, array in parameters.items()
    })  # fmt: skip
    given = (kind, tiny_bert_folder, tokenizer)
    plain, wanted, weights, moved = trained(*given, tmp_path / "plain", cache_encoder=False)
    assert not plain.feed.is_cached
    assert max(np.abs(change).max() for name, change in moved.items() if "bert" not in name) > 1e-3
    seen = texts_that_ran(monkeypatch)
    for name, folder in (("memory", None), ("disk", str(tmp_path / "cache"))):
        seen.clear()
        trainer, curve, after, _ = trained(*given, tmp_path / name, cache_dir=folder)
        assert trainer.feed.is_cached
        np.testing.assert_allclose(curve, wanted, rtol=2e-4, atol=2e-5)
        for key in weights:
            np.testing.assert_allclose(after[key], weights[key], atol=1e-5, err_msg=key)
        parts = [trainer.feed.train, trainer.feed.evaluation]
        counts = [len(different_texts(part, trainer.feed.collate)[0]) for part in parts]
        assert len(seen) == sum(counts)
        assert len(set(seen[: counts[0]])) == counts[0]
        assert len(set(seen[counts[0] :])) == counts[1]
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 2
    width = 32 * 4
    for part in parts:
        texts = different_texts(part, trainer.feed.collate)[0]
        size = sum(len(text["input_ids"]) for text in texts) * width
        assert any(0 < file.stat().st_size - size < 1000 for file in files)
    seen.clear()
    _, again, _, _ = trained(*given, tmp_path / "again", cache_dir=str(tmp_path / "cache"))
    assert not seen  # all was found
    np.testing.assert_array_equal(again, curve)


@pytest.mark.parametrize("side", ["right", "left"])
def test_groups_get_the_outputs_of_their_own_texts(tiny_bert_folder, tokenizer, tmp_path, side):
    random = np.random.default_rng(1)
    shared = text(random)
    rows = [{"text": shared, "choices": [f"{word} {text(random)}", f"it {word}", "so"]} for word in WORDS[:5]]
    rows.append({"text": shared, "choices": ["so", "very", "so"]})
    examples = tokenize_examples(rows, tokenizer)
    bert, collate = BertCore.from_pretrained(tiny_bert_folder).eval(), Collator(tokenizer.pad_id, side, exact=True)
    texts, places = different_texts(examples, collate)
    assert len(texts) == 12  # ten, "so" that comes five times more, and "very"
    assert places[5] == [2, 11, 2]
    batch = collate.pad_texts(texts)
    wanted = bert(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).last_hidden_state
    found = cache_encoder(bert, examples, collate, 16)
    assert found[0]["hidden_states"][2] is found[5]["hidden_states"][0]
    mapped, _ = cache_on_disk(tmp_path, 10, bert, examples, collate, 16)
    for own, states, rows in zip(places, found, mapped, strict=True):
        for place, kept, stored in zip(own, states["hidden_states"], rows["hidden_states"], strict=True):
            length = len(texts[place]["input_ids"])
            reference = np.array(wanted[place])[slice(length) if side == "right" else slice(-length, None)]
            np.testing.assert_allclose(kept, reference, atol=1e-5)
            np.testing.assert_array_equal(stored, kept)
    batch = collate(found)
    assert batch["hidden_states"].shape[:2] == (6, 3)
    assert batch["hidden_states"].shape[:3] == batch["attention_mask"].shape
    outside = np.where(np.array(batch["attention_mask"])[..., None], 0, np.array(batch["hidden_states"]))
    assert not outside.any()


def test_ranks_share_the_texts_of_groups(tiny_bert_folder, tokenizer, tmp_path, monkeypatch):
    random = np.random.default_rng(2)
    rows = [{"text": text(random), "choices": documents(random, 3)} for _ in range(7)]
    examples, collate = tokenize_examples(rows, tokenizer), Collator(tokenizer.pad_id, exact=True)
    bert = BertCore.from_pretrained(tiny_bert_folder).eval()
    mx.eval(bert.parameters())
    wanted = cache_encoder(bert, examples, collate, 4)
    barrier, sent, found = threading.Barrier(2, timeout=60), {}, {}

    def rank(number):
        def gather(arrays):
            sent[number] = arrays
            barrier.wait()
            everything = [sent[0], sent[1]]
            barrier.wait()
            return everything

        world = SimpleNamespace(rank=number, size=2, gather=gather)
        with mx.stream(mx.new_stream(mx.cpu)):
            memory = cache_encoder(bert, examples, collate, 4, world=world)
            disk, _ = cache_on_disk(tmp_path / str(number), 10, bert, examples, collate, 4, world=world)
        found[number] = memory, disk

    seen = texts_that_ran(monkeypatch)
    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 2 * len(set(seen)) == 2 * len(different_texts(examples, collate)[0])  # memory and disk
    for kept in (*found[0], *found[1]):
        for example, reference in zip(kept, wanted, strict=True):
            for states, others in zip(example["hidden_states"], reference["hidden_states"], strict=True):
                np.testing.assert_allclose(states, others, atol=1e-6)


def test_the_bound_counts_each_text_once(tokenizer, caplog):
    texts = [np.arange(5, 25) + n for n in range(30)]
    rows = [{"input_ids": [texts[n % 30], texts[(n + 1) % 30]]} for n in range(3000)]
    assert can_cache([rows], PartsCollator(0), 400, 1)  # 30 * 20 tokens of 1600 bytes: 0.92 MiB
    assert not can_cache([rows, rows[:15]], PartsCollator(0), 400, 1)  # 16 more texts of the evaluation
    assert "outputs of 46 texts take 2 MiB, more than cache_limit_mb (1)" in caplog.text


def test_groups_beyond_the_bound_run_in_every_epoch(tiny_bert_folder, tokenizer, tmp_path, caplog, monkeypatch):
    args = arguments(tmp_path / "run", cache_limit_mb=1, epochs=1)
    trainer = choices(tiny_bert_folder, tokenizer, args, np.random.default_rng(0))
    monkeypatch.setattr(trainer.model.bert, "get_hidden_size", lambda: 10_000)
    with caplog.at_level(logging.WARNING):
        trainer.feed.cache(trainer.model.bert)
    assert not trainer.feed.is_cached
    assert "more than cache_limit_mb (1): it runs over them in every epoch" in caplog.text


def test_a_stopped_pass_leaves_no_file_of_groups(tiny_bert_folder, tokenizer, tmp_path):
    random = np.random.default_rng(0)
    examples = tokenize_examples([{"text": text(random), "choices": documents(random, 2)} for _ in range(9)], tokenizer)
    answers = iter([False, True])
    bert = BertCore.from_pretrained(tiny_bert_folder).eval()
    with pytest.raises(KeyboardInterrupt, match="stopped while the frozen encoder ran"):
        cache_on_disk(tmp_path, 10, bert, examples, Collator(0), 4, stop=lambda: next(answers))
    assert not list(tmp_path.iterdir())


def test_what_changes_in_every_epoch_is_not_kept(tiny_bert_folder, tokenizer, tmp_path, caplog):
    random = np.random.default_rng(0)
    encoder = SentenceEncoder(BertCore.from_pretrained(tiny_bert_folder), tokenizer, [
        Pooling({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}),
        Dense({"in_features": 32, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"}),
    ])  # fmt: skip
    pairs = [(text(random, 4, 6), text(random, 4, 6)) for _ in range(12)]
    mined = SentenceEncoderTrainer(
        encoder, arguments(tmp_path / "mined", epochs=1, metric=None), pairs, loss=MultipleNegativesRanking(),
        hard_negatives=HardNegatives(num_negatives=1),
    )  # fmt: skip
    args = arguments(tmp_path / "masked", epochs=1, metric=None)
    masked = MaskedLMTrainer(load_masked_lm(tiny_bert_folder), tokenizer, args, documents(random, 8))
    for trainer in (mined, masked):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer.train()
        assert not trainer.feed.is_cached
        assert "not kept for texts that change (masked anew, with mined negatives)" in caplog.text
