"""Pipelines that transformers does not have, and heads that we trained: against torch, or against the model itself."""

import json
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from pipeline_cases import LONG, TEXTS, assert_alike, assert_same_in_any_batch, save

from heads import HeadConfig, MultiTaskNLPHead
from mlx_bert import mtl_data
from mlx_bert.core import BertCore
from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.pipelines import MultiTask, TextClassification, multi_task, pipeline
from mlx_bert.inference.predict import TextPredictor
from mlx_bert.model import BertWithHead
from mlx_bert.mtl import SentenceTransformerMTL
from mlx_bert.multihead import MultiheadClassifier
from mlx_bert.tokenizer import Tokenizer

CHOICES = ["a dog walked", "the film", "nice, very good and quickly eaten food"]


@pytest.fixture(scope="module")
def chooser(tmp_path_factory):
    return save(tmp_path_factory.mktemp("chooser"), "ForMultipleChoice")


def chosen(folder, pairs, **options):
    """torch's probabilities."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForMultipleChoice.from_pretrained(folder).eval()
    batch = tokenizer(
        *map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt", truncation=True, **options
    )
    with torch.no_grad():
        return model(**{name: array[None] for name, array in batch.items()}).logits.softmax(-1)[0].tolist()


def test_multiple_choice(chooser):
    pipe = pipeline("multiple-choice", chooser)
    question = "who was it that walked?"
    scores = chosen(chooser, [(question, choice) for choice in CHOICES])
    order = sorted(range(3), key=lambda place: -scores[place])
    wanted = [{"choice": CHOICES[n], "index": n, "score": scores[n]} for n in order]
    assert_alike(pipe({"question": question, "choices": CHOICES}), wanted)
    assert_alike(pipe({"text": question, "choices": tuple(CHOICES)}), wanted)
    assert_alike(pipe(question, CHOICES), wanted)
    assert_alike(pipe([{"question": question, "choices": CHOICES}], top_k=2), [wanted[:2]])
    in_context = chosen(chooser, [(LONG, f"{question} {choice}") for choice in CHOICES], max_length=40)
    found = pipe({"context": LONG, "question": question, "choices": CHOICES}, max_length=40)
    assert [each["score"] for each in found] == pytest.approx(sorted(in_context, reverse=True), abs=1e-5)
    assert found != pipe({"context": LONG, "question": question, "choices": CHOICES})
    items = [{"question": question, "choices": CHOICES[:count]} for count in (1, 3, 2)]
    items.append({"question": "", "choices": [LONG, ""], "context": TEXTS[0]})
    assert_same_in_any_batch(pipe, items)
    assert pipe([]) == []
    for each in pipe(items):
        assert sum(choice["score"] for choice in each) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "item",
    ["who?", {"choices": ["a"]}, {"question": "who?"}, {"question": "who?", "choices": []},
     {"question": "who?", "choices": "ab"},
     {"question": "who?", "choices": ["a", 3]}, {"question": "who?", "choices": ["a"], "context": 3}],
)  # fmt: skip
def test_choices_that_are_none(chooser, item):
    with pytest.raises(ValueError, match=r"expected \{'question': \.\.\., 'choices': \[\.\.\.\]\} with texts"):
        pipeline("multiple-choice", chooser)(item)


def test_sentence_similarity(minilm_source):
    pipe = pipeline("sentence-similarity", minilm_source)
    item = {"source_sentence": "That is a happy person", "sentences": ["That is a happy dog", "Today is a sunny day"]}
    vectors = SentenceEncoder.from_pretrained(minilm_source).encode([item["source_sentence"], *item["sentences"]])
    found = pipe(item)
    assert found == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-5)
    assert found[0] > 0.6 > 0.3 > found[1]
    items = [
        item,
        {"source_sentence": "a", "sentences": ["a"]},
        {"source_sentence": "", "sentences": item["sentences"]},
    ]
    assert pipe(items)[1] == pytest.approx([1.0])
    assert_same_in_any_batch(pipe, items)
    assert pipe({"source_sentence": "a", "sentences": []}) == []
    assert pipe([]) == []
    for bad in ({"sentences": ["a"]}, {"source_sentence": "a", "sentences": "b"}, [3]):
        with pytest.raises(ValueError, match=r"expected \{'source_sentence': \.\.\., 'sentences': \[\.\.\.\]\}"):
            pipe(bad)
    with pytest.raises(ValueError, match="expected a text but got '3'"):
        pipe({"source_sentence": "a", "sentences": [3]})


ROWS = {
    "colour": [{"text": f"so {word}", "label": word} for word in ("red", "blue", "green")] * 4,
    "mood": [{"text": f"so {word}", "label": label} for word, label in (("good", "up"), ("bad", "down"))] * 6,
}


@pytest.fixture(scope="module")
def multihead(tiny_bert_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("multihead")
    settings = {"model_name": str(tiny_bert_folder), "output_dir": str(out / "runs"), "epochs": 1, "max_length": 9}
    classifier = MultiheadClassifier({"training": settings, "encoder": {"freeze_epochs": 0}})
    classifier.train(ROWS, progress=False)
    classifier.save(out / "model")
    return classifier, out / "model"


def test_multi_task_of_a_multihead_classifier(multihead):
    classifier, folder = multihead
    pipe = pipeline("multi-task", folder)
    predicted = classifier.predict_all_tasks([*TEXTS, ""], return_all_scores=True)
    for number, found in enumerate(pipe([*TEXTS, ""])):
        assert list(found) == ["colour", "mood"]
        for task, rows in found.items():
            scores = predicted[task][number]["scores"]
            assert {row["label"]: row["score"] for row in rows} == pytest.approx(scores, abs=1e-6)
            assert [row["score"] for row in rows] == sorted(scores.values(), reverse=True)
    assert pipe(TEXTS[0], top_k=1) == {task: rows[:1] for task, rows in pipe(TEXTS[0]).items()}
    assert pipe(LONG, max_length=5) != pipe(LONG)
    in_memory = pipeline("multi-task", classifier, top_k=2)
    assert_alike(in_memory([*TEXTS, LONG]), pipe([*TEXTS, LONG], top_k=2))
    assert_same_in_any_batch(pipe, TEXTS)
    assert pipe([]) == []


def test_multi_task_of_every_kind(tiny_bert_folder, tmp_path):
    mx.random.seed(2)
    kinds = {"a": ("classification", 3), "b": ("multilabel", 4), "c": ("regression", 1)}
    tasks = {name: {"type": kind, "num_classes": count} for name, (kind, count) in kinds.items()}
    head = HeadConfig("multi_task", 32, 3, extra={"task_configs": tasks}, initializer_range=0.5)
    model = BertWithHead(BertCore.from_pretrained(tiny_bert_folder), head)
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    pipe = pipeline("multi-task", tmp_path / "model")
    outputs = model.eval()(*pipe.tokenizer([TEXTS[0]]))
    functions = {"classification": lambda x: np.exp(x) / np.exp(x).sum(), "multilabel": lambda x: 1 / (1 + np.exp(-x)),
                 "regression": lambda x: x}  # fmt: skip
    found = pipe(TEXTS[0])
    for name, (kind, _) in kinds.items():
        scores = functions[kind](np.array(outputs[f"{name}_logits"])[0])
        wanted = [{"label": f"LABEL_{n}", "score": float(scores[n])} for n in np.argsort(-scores)]
        assert_alike(found[name], wanted)
    assert_same_in_any_batch(pipe, TEXTS)


TAGS = ["O", "B-PER", "I-PER"]


@pytest.mark.parametrize("crf", [False, True])
def test_multi_task_of_texts_and_tags_in_one_pass(tiny_bert_folder, tmp_path, crf):
    tasks = [{"name": "tags", "task_type": "named_entity_recognition", "num_classes": 3},
             {"name": "mood", "task_type": "text_classification", "num_classes": 2},
             {"name": "size", "task_type": "text_regression"}]  # fmt: skip
    mx.random.seed(5)
    kwargs = {"tags": {"use_crf": crf}}
    head = MultiTaskNLPHead(tasks, 32, head_kwargs=kwargs, initializer_range=0.5)
    model = BertWithHead(BertCore.from_pretrained(tiny_bert_folder), head)
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    names = {"tags": TAGS, "mood": ["glum", "glad"]}
    pipe = pipeline("multi-task", tmp_path / "model", labels=names)
    alone = BertWithHead(pipe.model.bert, pipe.model.head.task_heads["tags"], id2label=dict(enumerate(TAGS)))
    texts = [*TEXTS, LONG, ""]
    for strategy in ("simple", "none", "average"):
        wanted = pipeline("ner", alone, tokenizer=tiny_bert_folder, aggregation_strategy=strategy)(texts)
        assert any(wanted)
        found = pipe(texts, aggregation_strategy=strategy)
        assert_alike([row["tags"] for row in found], [[{**e, "score": float(e["score"])} for e in w] for w in wanted])
    outputs = pipe.model(*pipe.tokenizer([TEXTS[0]]))["head_outputs"]
    scores = dict(zip(names["mood"], np.array(outputs["mood"]["probabilities"])[0].tolist(), strict=True))
    (row,) = pipe([TEXTS[0]])
    assert {each["label"]: each["score"] for each in row["mood"]} == pytest.approx(scores, abs=1e-5)
    assert row["size"] == [{"label": "LABEL_0", "score": pytest.approx(outputs["size"]["value"].item())}]
    assert pipe("", ignore_labels=TAGS)["tags"] == []
    assert_same_in_any_batch(pipe, texts)
    plain = pipeline("multi-task", tmp_path / "model")(TEXTS[0])
    assert {each["entity_group"] for each in plain["tags"]} <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    with pytest.raises(ValueError, match="expected 3 labels for 'tags' but got 2"):
        pipe(TEXTS, labels={"tags": ["O", "X"]})
    with pytest.raises(ValueError, match=r"expected aggregation_strategy to be one of none, simple.* but got 'all'"):
        pipe(TEXTS, aggregation_strategy="all")
    assert json.dumps(TextPredictor(pipe.model, pipe.tokenizer).predict(TEXTS))


@pytest.mark.parametrize("sharing", ["hard", "soft"])
def test_multi_task_of_a_sentence_model(tiny_bert_folder, tmp_path, sharing):
    mx.random.seed(4)
    tasks = {"topic": ["sport", "money", "art"], "mood": 2}
    model = SentenceTransformerMTL(tiny_bert_folder, output_dim=12, tasks=tasks, sharing=sharing)
    model.save_pretrained(tmp_path / "mtl")
    predicted = model.predict([*TEXTS, LONG])
    for pipe in (pipeline("multi-task", tmp_path / "mtl"), pipeline("multi-task", model)):
        found = pipe([*TEXTS, LONG])
        for task, names in model.tasks.items():
            for row, probs in zip(found, predicted[task]["probs"], strict=True):
                wanted = dict(zip(names, probs.tolist(), strict=True))
                assert {each["label"]: each["score"] for each in row[task]} == pytest.approx(wanted, abs=1e-5)
        assert [row["topic"][0]["label"] for row in found] == predicted["topic"]["labels"]
        assert_same_in_any_batch(pipe, TEXTS)
    assert multi_task.MTL_CONFIG == mtl_data.CONFIG_FILE
    with ThreadPoolExecutor(2) as pool:
        assert_alike(list(pool.map(pipeline("multi-task", tmp_path / "mtl"), TEXTS)), found[: len(TEXTS)])


def test_multi_task_needs_tasks_that_label(tiny_bert_folder):
    task = {"name": "answers", "task_type": "question_answering"}
    model = BertWithHead(BertCore.from_pretrained(tiny_bert_folder), MultiTaskNLPHead([task], 32))
    with pytest.raises(ValueError, match="'answers' is of type question_answering"):
        MultiTask(model, Tokenizer.from_pretrained(tiny_bert_folder))


def own(folder, head_type, num_labels=3, **options):
    mx.random.seed(3)
    names = dict(enumerate(("low", "middle", "high")[:num_labels]))
    return create_bert_with_head(
        bert_name=folder, head_type=head_type, num_labels=num_labels, id2label=names, initializer_range=0.5, **options
    )


@pytest.mark.parametrize(
    ("head_type", "output", "num_labels"),
    [
        ("binary_classification", "probabilities_2class", 2),
        ("multiclass_classification", "probabilities", 3),
        ("multilabel_classification", "probabilities", 3),
        ("ordinal_regression", "probabilities", 3),
        ("regression", "predictions", 1),
        ("ranking", "scores", 1),
        ("ensemble", "probabilities", 3),
    ],
)
def test_text_classification_with_a_head_of_ours(tiny_bert_folder, head_type, output, num_labels):
    model = own(tiny_bert_folder, head_type, num_labels)
    pipe = TextClassification(model, Tokenizer.from_pretrained(tiny_bert_folder))
    scores = np.array(model(*pipe.tokenizer([TEXTS[1]]))["head_outputs"][output]).ravel()
    wanted = [{"label": ("low", "middle", "high")[n], "score": float(scores[n])} for n in np.argsort(-scores)]
    assert_alike(pipe(TEXTS[1], top_k=None), wanted)
    assert_alike(pipe(TEXTS[1]), wanted[:1])
    assert_same_in_any_batch(pipe, TEXTS, top_k=None)


def test_predictor_of_entities(tiny_bert_folder):
    predictor = TextPredictor(
        own(tiny_bert_folder, "token_classification"), Tokenizer.from_pretrained(tiny_bert_folder)
    )
    wanted = predictor.pipeline(TEXTS, aggregation_strategy="simple")
    found = predictor.predict(TEXTS, batch_size=2)
    assert_alike(
        [row["entities"] for row in found], [[dict(e, score=float(e["score"])) for e in row] for row in wanted]
    )
    assert all(type(entity["score"]) is float for row in found for entity in row["entities"])
    assert predictor.predict([LONG], max_length=9) != predictor.predict([LONG])
    assert predictor.predict([]) == []
    with pytest.raises(ValueError, match="expected top_k of 1 for a token_classification model but got 2"):
        predictor.predict(TEXTS, top_k=2)
    with pytest.raises(
        ValueError, match="expected texts without pairs for a token_classification model but got 1 pairs"
    ):
        predictor.predict(TEXTS[:1], ["a"])


def test_predictor_of_answers(tmp_path):
    predictor = TextPredictor.from_pretrained(save(tmp_path, "ForQuestionAnswering"))
    questions, contexts = ["who?", "what was it"], [LONG, TEXTS[0]]
    steps = []
    bar = type("Bar", (), {"update": lambda self, count: steps.append(count)})()
    found = predictor.predict(questions, contexts, top_k=3, progress=bar)
    assert steps == [1, 1]
    for row, question, context in zip(found, questions, contexts, strict=True):
        wanted = predictor.pipeline(question, context, top_k=3)
        assert_alike(row["answers"], wanted)
        assert (row["answer"], row["confidence"]) == (wanted[0]["answer"], pytest.approx(wanted[0]["score"], abs=1e-5))
        assert context[row["start"] : row["end"]] == row["answer"]
    assert list(predictor.predict(questions, contexts)[0]) == ["answer", "confidence", "start", "end"]
    assert predictor.predict(questions, contexts, max_length=30)[0] != predictor.predict(questions, contexts)[0]
    with pytest.raises(ValueError, match=r"expected the context of each of 2 questions .* but got no pairs"):
        predictor.predict(questions)
    with pytest.raises(ValueError, match=r"expected the context of each of 2 questions .* but got 1 pairs"):
        predictor.predict(questions, ["a"])


def test_predictor_of_choices(chooser):
    predictor = TextPredictor.from_pretrained(chooser)
    (row,) = predictor.predict(["who?"], [CHOICES], top_k=2)
    wanted = predictor.pipeline("who?", CHOICES)
    assert row["scores"] == pytest.approx({each["choice"]: each["score"] for each in wanted[:2]}, abs=1e-5)
    assert [row["choice"], row["index"]] == [wanted[0]["choice"], wanted[0]["index"]]
    assert list(predictor.predict(["who?"], [CHOICES])[0]) == ["choice", "index", "confidence"]
    with pytest.raises(ValueError, match=r"expected the choices of each of 1 questions .* but got no pairs"):
        predictor.predict(["who?"])


def test_predictor_of_several_tasks(multihead):
    pipe = pipeline("multi-task", multihead[1])
    predictor = TextPredictor(pipe.model, pipe.tokenizer)
    (row,) = predictor.predict([TEXTS[0]], top_k=3, max_length=9)
    scores = {task: [each["score"] for each in rows] for task, rows in pipe(TEXTS[0]).items()}
    assert {task: [each["score"] for each in rows] for task, rows in row["tasks"].items()} == scores
    assert [len(rows) for rows in predictor.predict([TEXTS[0]])[0]["tasks"].values()] == [1, 1]


@pytest.mark.parametrize("head_type", ["text_generation", "contrastive", "text_similarity"])
def test_predictor_refuses_heads_that_say_nothing(tiny_bert_folder, head_type):
    with pytest.raises(ValueError, match=f"labels, values or answers but got {head_type}"):
        TextPredictor(own(tiny_bert_folder, head_type), Tokenizer.from_pretrained(tiny_bert_folder))


def test_pipelines_answer_in_threads(tmp_path, minilm_source):
    """Only the engine's thread may touch the device."""
    oracle = pipeline("question-answering", save(tmp_path, "ForQuestionAnswering"))
    compare = pipeline("sentence-similarity", minilm_source)
    question = {"question": "who?", "context": LONG}
    comparison = {"source_sentence": "a dog", "sentences": ["a cat", "the sun"]}
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(oracle, [question] * 6))
        cosines = list(pool.map(compare, [comparison] * 6))
    assert_alike(answers, [oracle(question)] * 6)
    assert cosines == [pytest.approx(compare(comparison), abs=1e-5)] * 6


@pytest.mark.parametrize("named", [False, True])
def test_leaves_of_a_tree_have_their_own_names(tiny_bert_folder, named):
    """A hierarchical head gives probabilities of leaves, and predicts numbers of labels."""
    hierarchy, numbers = {"animal": ["cat", "dog"], "plant": ["tree"]}, [4, 2, 0, 3, 1]
    label_to_idx = dict(zip(["animal", "plant", "cat", "dog", "tree"], numbers, strict=True))
    names = {number: label.upper() for label, number in label_to_idx.items()} if named else None
    mx.random.seed(1)
    options = {"hierarchy": hierarchy, "label_to_idx": label_to_idx}
    head = HeadConfig("hierarchical", 32, 5, extra=options, initializer_range=1.0)
    model = BertWithHead(BertCore.from_pretrained(tiny_bert_folder), head, id2label=names).eval()
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    found = TextPredictor(model, tokenizer).predict(TEXTS, top_k=3)
    listed = TextClassification(model, tokenizer)(TEXTS, top_k=None)
    for text, row, rows in zip(TEXTS, found, listed, strict=True):
        outputs = model(*tokenizer([text]))
        spelled = [leaf.upper() if named else leaf for leaf in ("cat", "dog", "tree")]
        scores = dict(zip(spelled, np.array(outputs["probabilities"])[0].tolist(), strict=True))
        assert row["label"].lower() == {n: label for label, n in label_to_idx.items()}[outputs["predictions"].item()]
        assert row["confidence"] == pytest.approx(scores[row["label"]], abs=1e-5)
        assert row["scores"] == pytest.approx(scores, abs=1e-5)
        assert {each["label"]: each["score"] for each in rows} == pytest.approx(scores, abs=1e-5)
