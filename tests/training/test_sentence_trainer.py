"""Fine-tuning a sentence encoder: gradients as in sentence-transformers, folders that it loads, exact resume."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from scipy.stats import spearmanr
from sentence_cases import encoder_of, sentences, settings

from mlx_bert.core import BertCore
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.evaluators import EmbeddingSimilarityEvaluator, TripletEvaluator
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.gradient_cache import embed_in_chunks
from mlx_bert.training.hard_negatives import HardNegatives
from mlx_bert.training.recompute import random_key
from mlx_bert.training.sentence import SentenceEncoderTrainer, SentenceModel, SentenceObjective
from mlx_bert.training.sentence_data import SentenceCollator, sentence_examples
from mlx_bert.training.sentence_losses import (
    BatchHardTriplet,
    Cached,
    CoSENT,
    EmbeddingMSE,
    MultipleNegativesRanking,
    Triplet,
)
from mlx_bert.training.step import flat_parameters, install


def scored(count, seed=0):
    return [
        {
            "text_a": row["anchor"],
            "text_b": row["positive" if number % 3 else "negative"],
            "score": min(number % 3, 1.0),
        }
        for number, row in enumerate(sentences(count, seed))
    ]


def batch_of(encoder, rows):
    examples, _ = sentence_examples(rows, encoder.tokenizer, encoder.max_seq_length)
    return SentenceCollator(encoder.tokenizer.pad_id, exact=True)(examples)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cached", [False, True])
def test_gradients_of_every_weight_equal_sentence_transformers(tiny_bert_folder, tmp_path, cached):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    encoder = encoder_of(tiny_bert_folder)
    encoder.save_pretrained(tmp_path / "model")
    reference = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    rows = [list(row.values()) for row in sentences(7)]
    rows[2] = [f"{text} and so is the old city" for text in rows[2]]  # the others are padded
    features = [reference.preprocess(list(column)) for column in zip(*rows, strict=True)]
    loss = MultipleNegativesRanking(scale=5.0)
    if cached:
        expected = losses.CachedMultipleNegativesRankingLoss(reference, scale=5.0, mini_batch_size=3)(features, None)
        loss = Cached(loss, chunk_size=3)
    else:
        expected = losses.MultipleNegativesRankingLoss(reference, scale=5.0)(features, None)
    expected.backward()

    model, objective = SentenceModel(encoder), SentenceObjective(loss, [0, 0, 0])
    batch = batch_of(encoder, rows)

    def value(parameters):
        install(model, parameters)
        return objective.loss(model, objective.forward(model, batch), batch)[0]

    parameters = flat_parameters(model)
    found, gradients = mx.value_and_grad(value)(parameters)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    install(model, gradients)  # so that the checkpoint's names tell which is which
    ours = encoder.core.weights_on_disk()
    dense = {"linear.weight": encoder.modules[1].linear.weight, "linear.bias": encoder.modules[1].linear.bias}
    checked = 0
    for module, arrays in ((reference[0].model, ours), (reference[2], dense)):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                np.testing.assert_allclose(arrays[name], parameter.grad, rtol=2e-3, atol=2e-6, err_msg=name)
                checked += 1
    assert checked > 30


def test_cached_gradients_replay_the_dropout_of_each_chunk(tiny_bert_folder):
    encoder = encoder_of(tiny_bert_folder, dropout=0.3)
    model = SentenceModel(encoder).train()
    parts = batch_of(encoder, [list(row.values())[:2] for row in sentences(7)])["parts"]
    loss, parameters = MultipleNegativesRanking(), flat_parameters(model)

    def cached(parameters):
        install(model, parameters)
        mx.random.seed(5)
        return loss(embed_in_chunks(model, lambda _, part: model(part), parts, 3))

    def plain(parameters):
        install(model, parameters)
        mx.random.seed(5)
        keys = iter(mx.random.split(mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32), 6))
        embeddings = []
        for part in parts:
            rows = []
            for start in (0, 3, 6):
                with random_key(next(keys)):
                    rows.append(model({name: array[start : start + 3] for name, array in part.items()}))
            embeddings.append(mx.concatenate(rows))
        return loss(embeddings)

    value, gradients = mx.value_and_grad(cached)(parameters)
    expected, wanted = mx.value_and_grad(plain)(parameters)
    mx.eval(value, gradients, expected, wanted)
    assert value.item() == expected.item()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)
    model.eval()
    install(model, parameters)
    assert loss(embed_in_chunks(model, lambda _, part: model(part), parts, 3)).item() != value.item()


def test_cached_memory_does_not_grow_with_the_batch():
    mx.random.seed(0)
    model = BertCore({"model_type": "bert", "vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 4,
                      "num_attention_heads": 2, "intermediate_size": 256}).train()  # fmt: skip
    parameters = flat_parameters(model)
    mx.eval(parameters)

    def peak(size, chunk):
        part = {"input_ids": mx.random.randint(0, 99, (size, 64))}

        def value(parameters):
            install(model, parameters)
            embed = lambda _, part: model(part["input_ids"]).mean_pooled  # noqa: E731
            return mx.sum(mx.square(embed_in_chunks(model, embed, [part], chunk)[0]))

        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.value_and_grad(value)(parameters))
        install(model, parameters)
        return mx.get_peak_memory() - before

    whole, small, large = peak(64, 64), peak(64, 8), peak(128, 8)
    assert small < whole / 4
    assert large < 1.2 * small


def test_cached_without_trainable_parameters(tiny_bert_folder):
    encoder = encoder_of(tiny_bert_folder)
    model = SentenceModel(encoder)
    parts = batch_of(encoder, [("a dog",), ("the cat is good",), ("rain",)])["parts"]
    model.freeze()
    (found,) = embed_in_chunks(model, lambda _, part: model(part), parts, 2)
    np.testing.assert_allclose(found, model(parts[0]), atol=1e-6)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_triplets_are_learned_and_saved_for_sentence_transformers(tiny_bert_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder = encoder_of(tiny_bert_folder, dropout=0.1)
    dense = np.array(encoder.modules[1].linear.weight)
    held_out = sentences(24, seed=1)
    loss = Cached(Triplet(0.5, "cosine"), chunk_size=4)
    args = settings(tmp_path / "run", epochs=6, learning_rate=3e-3)
    trainer = SentenceEncoderTrainer(encoder, args, sentences(48), held_out, loss=loss)
    before = trainer.evaluate()
    assert before.keys() == {"loss", "cosine_accuracy"}
    result = trainer.train()
    assert result.metrics["loss"] < 0.7 * before["loss"]
    assert result.metrics["cosine_accuracy"] > 0.9
    assert np.abs(np.array(encoder.modules[1].linear.weight) - dense).max() > 1e-3
    texts = [row["anchor"] for row in held_out]
    own = encoder.encode(texts)
    for name in ("best_model", "final_model"):
        folder = tmp_path / "run" / name
        loaded = SentenceEncoder.from_pretrained(folder)
        reference = SentenceTransformer(str(folder), device="cpu")
        np.testing.assert_allclose(reference.encode(texts), loaded.encode(texts), atol=2e-5)
        assert reference.max_seq_length == 16
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(tmp_path / "run/best_model").encode(texts), own)


def test_a_compiled_update_is_the_same(tiny_bert_folder, tmp_path):
    rows = [
        ("the dog is good", "a dog is nice"),
        ("the sun is red", "a sun is old"),
        ("the cat is sad", "a cat is bad"),
    ]
    runs = []
    for compiled in (False, True):
        encoder = encoder_of(tiny_bert_folder, dropout=0.1)
        encoder.core.encoder.layers = encoder.core.encoder.layers[:1]
        args = settings(tmp_path / str(compiled), epochs=1, compile=compiled)
        loss = Cached(MultipleNegativesRanking(), chunk_size=2)
        trainer = SentenceEncoderTrainer(encoder, args, rows, loss=loss)
        trainer.feed.collate.exact = False  # equal shapes, so equal dropout
        trainer.train()
        runs.append(flat_parameters(trainer.model))
    for name, array in runs[0].items():
        np.testing.assert_allclose(array, runs[1][name], atol=2e-4, err_msg=name)


def test_the_evaluator_selects_the_best_model_without_eval_examples(tiny_bert_folder, tmp_path):
    pairs = scored(30, seed=1)
    columns = [[pair[name] for pair in pairs] for name in ("text_a", "text_b", "score")]
    evaluator = EmbeddingSimilarityEvaluator(*columns, name="sts")
    encoder = encoder_of(tiny_bert_folder)
    trainer = SentenceEncoderTrainer(
        encoder, settings(tmp_path / "run", epochs=3), scored(60), loss=CoSENT(), evaluator=evaluator
    )
    assert trainer.args.metric == "sts_spearman_cosine"
    before = trainer.evaluate()["sts_spearman_cosine"]
    result = trainer.train()
    values = [record["eval_sts_spearman_cosine"] for record in result.history["epochs"]]
    assert result.metrics["sts_spearman_cosine"] == max(values) > before
    assert evaluator(encoder) == result.metrics
    metadata = json.loads((tmp_path / "run/best_model/metadata.json").read_text())
    assert metadata["metrics"]["sts_spearman_cosine"] == max(values)


def test_metrics_of_scored_pairs(tiny_bert_folder, tmp_path):
    encoder = encoder_of(tiny_bert_folder)
    trainer = SentenceEncoderTrainer(encoder, settings(tmp_path), scored(8), scored(30, 2), loss=CoSENT())
    pairs = scored(30, 2)
    evaluator = EmbeddingSimilarityEvaluator(
        *[[pair[name] for pair in pairs] for name in ("text_a", "text_b", "score")]
    )
    expected, found = evaluator(encoder), trainer.evaluate()
    # equal texts have cosines that differ by rounding, and so in rank
    assert found["spearman_cosine"] == pytest.approx(expected["spearman_cosine"], abs=1e-4)
    assert trainer.evaluate(pairs) == found


def test_metrics_and_weight_of_a_batch(tiny_bert_folder):
    random = np.random.default_rng(0)
    outputs = {f"embeddings_{n}": 3 * random.normal(size=(20, 4)) for n in range(3)}
    pair = {name: outputs[name] for name in ("embeddings_0", "embeddings_1")}
    a, b, c = outputs.values()
    cosines = [(a * x).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(x, axis=1) for x in (b, c)]
    scores = cosines[0] ** 3 + 0.1 * random.normal(size=20)
    objective = SentenceObjective(CoSENT(), [0, 0])
    assert objective.metrics(None, pair, scores) == pytest.approx({
        "spearman_cosine": spearmanr(cosines[0], scores).statistic,
        "pearson_cosine": np.corrcoef(cosines[0], scores)[0, 1],
    })  # fmt: skip
    outputs["embeddings_2"][:5] = b[:5]  # as near as the positive is not right
    right = (cosines[0] > cosines[1])[5:].sum() / 20
    assert objective.metrics(None, outputs, None) == {"cosine_accuracy": right}
    # a teacher's scores or embeddings are no scores of pairs
    assert objective.metrics(None, outputs, scores[:, None]) == objective.metrics(None, pair, np.array(a)) == {}
    embeddings = {name: mx.array(array) for name, array in pair.items()}
    _, weight = objective.loss(None, embeddings, {"labels": mx.array(scores)})
    assert weight.item() == 20  # of this batch in the mean of an epoch


class StopAfter(Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_step(self, trainer):
        if trainer.state.step == self.steps:
            trainer._stop = True


@pytest.mark.parametrize("mined", [False, True])
def test_an_interrupted_run_resumes_exactly(tiny_bert_folder, tmp_path, mined):
    from mlx_bert.training.outcome import TrainingInterrupted

    rows = [{"anchor": row["anchor"], "positive": row["positive"]} for row in sentences(40)]

    def trainer(folder, callbacks=()):
        return SentenceEncoderTrainer(
            encoder_of(tiny_bert_folder, dropout=0.2),
            settings(tmp_path / folder, epochs=3),
            rows,
            loss=MultipleNegativesRanking(),
            batch_sampler="no_duplicates",
            hard_negatives=HardNegatives(num_negatives=2, every=2) if mined else None,
            callbacks=callbacks,
        )

    whole = trainer("whole")
    whole.train()
    for stop in (2, 9):
        with pytest.raises(TrainingInterrupted):
            trainer("parts", [StopAfter(stop)]).train(resume=True)
    resumed = trainer("parts")
    resumed.train(resume=True)
    assert resumed.state.step == whole.state.step
    for (name, array), (_, own) in zip(
        tree_flatten(whole.model.parameters()), tree_flatten(resumed.model.parameters()), strict=True
    ):
        np.testing.assert_array_equal(array, own, err_msg=name)
    losses = [[record["train_loss"] for record in run.state.history["epochs"]] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_what_can_be_frozen(tiny_bert_folder, tmp_path):
    encoder = encoder_of(tiny_bert_folder)
    before = encoder.core.weights_on_disk()
    trainer = SentenceEncoderTrainer(
        encoder, settings(tmp_path, epochs=1, freeze="backbone"), sentences(16), loss=Triplet(0.3, "cosine")
    )
    dense = np.array(encoder.modules[1].linear.weight)
    trainer.train()
    after = encoder.core.weights_on_disk()
    assert all(mx.array_equal(before[name], after[name]).item() for name in before)
    assert np.abs(np.array(encoder.modules[1].linear.weight) - dense).max() > 1e-4
    assert {group.learning_rate for group in trainer.optimizer.groups} == {1e-3}


def test_adapters_train_and_are_merged_on_saving(tiny_bert_folder, tmp_path):
    encoder = encoder_of(tiny_bert_folder)
    args = settings(tmp_path, epochs=1, lora="bert.*.qkv", lora_rank=2)
    SentenceEncoderTrainer(encoder, args, sentences(16), loss=MultipleNegativesRanking()).train()
    loaded = SentenceEncoder.from_pretrained(tmp_path / "final_model")
    wanted = encoder.encode(["a good dog"])
    np.testing.assert_allclose(loaded.encode(["a good dog"]), wanted, atol=1e-5)
    encoder.save_pretrained(tmp_path / "own")  # a plain encoder again
    np.testing.assert_allclose(
        SentenceEncoder.from_pretrained(tmp_path / "own").encode(["a good dog"]), wanted, atol=1e-5
    )


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_stand_before_the_texts(tiny_bert_folder, tmp_path, include_prompt):
    encoder = encoder_of(tiny_bert_folder, include_prompt=include_prompt)
    rows = sentences(6)
    prompts = {"anchor": "find : ", "positive": "text : "}
    trainer = SentenceEncoderTrainer(
        encoder, settings(tmp_path), rows, loss=MultipleNegativesRanking(), prompts=prompts
    )
    batch = trainer.feed.collate(trainer.feed.train)
    outputs = trainer.objective.forward(trainer.model.eval(), batch)
    for number, column in enumerate(("anchor", "positive", "negative")):
        expected = encoder.encode([row[column] for row in rows], prompt=prompts.get(column, ""))
        np.testing.assert_allclose(outputs[f"embeddings_{number}"], expected, atol=2e-6)
    chunked = SentenceObjective(Cached(MultipleNegativesRanking(), 4), trainer.objective.prompt_lengths)
    for name, array in chunked.forward(trainer.model, batch).items():
        np.testing.assert_allclose(array, outputs[name], atol=2e-6)
    plain = encoder.encode([row["anchor"] for row in rows])
    assert np.abs(np.array(outputs["embeddings_0"]) - plain).max() > 1e-3


def test_the_default_prompt_is_applied(tiny_bert_folder, tmp_path):
    encoder = encoder_of(tiny_bert_folder)
    encoder.default_prompt_name = "task"
    trainer = SentenceEncoderTrainer(encoder, settings(tmp_path), sentences(6), loss=MultipleNegativesRanking())
    (wanted,) = encoder.tokenizer.encode(["find : " + sentences(6)[0]["anchor"]])
    assert trainer.feed.train[0]["input_ids"][0].tolist() == wanted.ids


def test_settings_win_over_what_the_encoder_and_the_evaluator_say(tiny_bert_folder, tmp_path):
    encoder = encoder_of(tiny_bert_folder)
    encoder.default_prompt_name = "task"
    rows = [("the dog is good " * n, "the cat is bad") for n in range(1, 9)]
    evaluator = TripletEvaluator(["a dog"], ["the dog"], ["rain"])

    def trainer(examples=rows, seed=42, loss=None, options=(), **given):
        args = settings(tmp_path, seed=seed, batch_size=2, **dict(options))
        return SentenceEncoderTrainer(encoder, args, examples, loss=loss or MultipleNegativesRanking(), **given)

    assert trainer().args.head_learning_rate == 1e-3
    assert trainer(options={"head_learning_rate": 0.5}).args.head_learning_rate == 0.5
    assert trainer(prompts="").feed.train[0]["input_ids"][0].tolist() == encoder.tokenizer.encode([rows[0][0]])[0].ids
    # a bound of the settings, but not beyond the encoder's 16; batches are no longer than that
    for bound, expected in ((6, 6), (99, 16)):
        for compiled, width in ((False, 5), (True, expected)):
            own = trainer(options={"max_length": bound, "compile": compiled}, prompts="")
            assert max(len(ids) for example in own.feed.train for ids in example["input_ids"]) == expected
            shorter = [{"input_ids": [ids[:5] for ids in example["input_ids"]]} for example in own.feed.train]
            assert own.feed.collate(shorter)["parts"][0]["input_ids"].shape == (8, width)
    pairs = [(row["anchor"], row["positive"]) for row in sentences(8)]
    mined = trainer(pairs, loss=Triplet(), hard_negatives=HardNegatives())  # the third text is the negative
    assert mined.feed.sampler.settings.num_negatives == 1
    orders = [
        [batch.indices.tolist() for batch in trainer(seed=seed, batch_sampler="no_duplicates").feed.sampler.batches()]
        for seed in (42, 42, 7)
    ]
    assert orders[0] == orders[1] != orders[2]
    found = trainer(eval_examples=rows, evaluator=evaluator).evaluate()
    assert {"loss", "cosine_accuracy"} <= found.keys()


def test_one_text_with_a_class_or_a_teacher(tiny_bert_folder, tmp_path):
    rows = [{"text": row["anchor"], "label": number % 2} for number, row in enumerate(sentences(24))]
    encoder = encoder_of(tiny_bert_folder)
    trainer = SentenceEncoderTrainer(
        encoder, settings(tmp_path / "a", epochs=6), rows, rows, loss=BatchHardTriplet(0.2, "cosine"),
    )  # fmt: skip
    before = trainer.evaluate()["loss"]
    assert trainer.train().metrics["loss"] < before - 0.01
    teacher = encoder_of(tiny_bert_folder).encode([row["text"] for row in rows])
    taught = [{"text": row["text"], "label": vector.tolist()} for row, vector in zip(rows, teacher, strict=True)]
    args = settings(tmp_path / "b", epochs=6, learning_rate=5e-3)
    trainer = SentenceEncoderTrainer(encoder, args, taught, taught, loss=EmbeddingMSE())
    before = trainer.evaluate()["loss"]
    assert trainer.train().metrics["loss"] < 0.5 * before


# --- mined negatives --------------------------------------------------------------------------------------------------


def test_negatives_are_mined_anew_by_the_present_encoder(tiny_bert_folder, tmp_path):
    rows = [(row["anchor"], row["positive"]) for row in sentences(40)]
    encoder = encoder_of(tiny_bert_folder)
    mining = HardNegatives(num_negatives=2, every=2, corpus=["the river is slow"])
    trainer = SentenceEncoderTrainer(
        encoder, settings(tmp_path, epochs=4, learning_rate=3e-3), rows, loss=MultipleNegativesRanking(),
        hard_negatives=mining, prompts="find : ",
    )  # fmt: skip
    sampler = trainer.feed.sampler
    assert [len(batch.indices) for batch in sampler.batches(0)] == [8] * 5
    batch = trainer.feed.collate(trainer.feed.train[:3])
    assert len(batch["parts"]) == 4
    outputs = trainer.objective.forward(trainer.model.eval(), batch)
    hardest = [negatives[0] for negatives in sampler.negatives[:3]]
    expected = encoder.encode(hardest, prompt="find : ")
    np.testing.assert_allclose(outputs["embeddings_2"], expected, atol=2e-6)
    right = {}
    for anchor, positive in rows:
        right.setdefault(anchor, {anchor}).add(positive)
    for (anchor, _), negatives in zip(rows, sampler.negatives, strict=True):
        assert len(set(negatives)) == 2
        assert right[anchor].isdisjoint(negatives)
    trainer.train()
    mined = [json.loads(path.read_text())["negatives"] for path in sorted((tmp_path / "hard_negatives").iterdir())]
    assert len(mined) == 2  # at epochs 0 and 2
    assert mined[0] != mined[1]


def test_a_batch_has_no_text_twice_with_its_negatives(tiny_bert_folder, tmp_path):
    rows = [(row["anchor"], row["positive"]) for row in sentences(40)]
    trainer = SentenceEncoderTrainer(
        encoder_of(tiny_bert_folder), settings(tmp_path), rows, loss=MultipleNegativesRanking(),
        hard_negatives=HardNegatives(every=0), batch_sampler="no_duplicates",
    )  # fmt: skip
    for batch in trainer.feed.sampler.batches(3):
        texts = [text for index in batch.indices for text in {*rows[index], *trainer.feed.sampler.negatives[index]}]
        assert len(texts) == len(set(texts))
