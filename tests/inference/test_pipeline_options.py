"""Options of pipelines, given once or with a call, and models in memory: as transformers has them."""

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pytest
import transformers
from pipeline_cases import LONG, TEXTS, assert_alike, save

from mlx_bert.core import BertCore
from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.pipelines import PIPELINES, base, pipeline
from mlx_bert.inference.predict import TextPredictor
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer

LABELS = {"ForSequenceClassification": ["bad", "fine", "good"], "ForTokenClassification": ["O", "B-PER", "I-PER"]}
CASES = [  # task, class, options, what goes in, options of a call that come first
    ("ner", "ForTokenClassification", {"aggregation_strategy": "simple"}, TEXTS[:2], {"aggregation_strategy": "none"}),
    ("text-classification", "ForSequenceClassification", {"top_k": None}, TEXTS[:2], {"top_k": 2}),
    ("text-classification", "ForSequenceClassification", {"function_to_apply": "none"}, TEXTS[0], {}),
    ("text-classification", "ForSequenceClassification", {"truncation": True, "max_length": 7}, TEXTS[3],
     {"max_length": 9}),
    ("fill-mask", "ForMaskedLM", {"top_k": 2}, "a [MASK] dog", {"top_k": 3}),
    ("fill-mask", "ForMaskedLM", {"tokenizer_kwargs": {"truncation": True, "max_length": 8}},
     "a [MASK] dog " + LONG, {}),
    ("zero-shot-classification", "ForSequenceClassification", {"candidate_labels": ["film", "food"]}, TEXTS[0],
     {"candidate_labels": ["dog"]}),
    ("zero-shot-classification", "ForSequenceClassification",
     {"candidate_labels": ["film", "food"], "hypothesis_template": "it is {}", "multi_label": True}, TEXTS[0], {}),
    ("feature-extraction", "Model", {"tokenize_kwargs": {"truncation": True, "max_length": 9}}, LONG, {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("options")
    return {kind: save(root / kind, kind, LABELS.get(kind)) for _, kind, *_ in CASES}


@pytest.mark.parametrize(("task", "kind", "options", "inputs", "call"), CASES)
def test_options_when_made_and_when_called(folders, task, kind, options, inputs, call):
    if task == "zero-shot-classification":
        names = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
        config = transformers.AutoConfig.from_pretrained(folders[kind], **names)
        reference = transformers.pipeline(task, model=transformers.BertForSequenceClassification.from_pretrained(
            folders[kind], config=config), tokenizer=str(folders[kind]), device="cpu", **options)  # fmt: skip
        model = BertWithHead.from_pretrained(folders[kind])
        model.set_labels(names["id2label"])
        ours = pipeline(task, model, tokenizer=folders[kind], **options)
    else:
        reference = transformers.pipeline(task, model=str(folders[kind]), device="cpu", **options)
        ours = pipeline(task, folders[kind], **options)
    assert_alike(ours(inputs), reference(inputs))
    assert_alike(ours(inputs, **call), reference(inputs, **call))
    assert_alike(ours(inputs), reference(inputs))  # a call's own options are for that call
    if "candidate_labels" in call:
        assert_alike(ours(inputs, call["candidate_labels"]), reference(inputs, **call))


def test_an_option_by_its_own_name_comes_before_tokenizer_kwargs(folders):
    pipe = pipeline("feature-extraction", folders["Model"])
    inner = {"tokenizer_kwargs": {"max_length": 9}}
    assert [len(pipe(LONG, **inner)[0]), len(pipe(LONG, max_length=7, **inner)[0])] == [9, 7]
    assert len(pipe.set_options(max_length=8, **inner)(LONG)[0]) == 8


def test_options_of_answers(tmp_path):
    folder = save(tmp_path, "ForQuestionAnswering")
    asked = {"question": "who?", "context": TEXTS[0]}
    plain, three = pipeline("question-answering", folder), pipeline("question-answering", folder, top_k=3)
    assert_alike(three(asked), plain(asked, top_k=3))
    assert_alike(three(**asked, top_k=1), plain(question="who?", context=TEXTS[0]))


def test_the_batch_size_of_a_call(folders, monkeypatch):
    sizes, run = [], base.run_batches
    monkeypatch.setattr(base, "run_batches", lambda *args, **options: sizes.append(options["batch_size"]) or run(
        *args, **options))  # fmt: skip
    pipe = pipeline("text-classification", folders["ForSequenceClassification"], batch_size=4)
    wanted = pipe(TEXTS)
    assert_alike(pipe(TEXTS, batch_size=8), wanted)
    streamed = pipe(iter(TEXTS), batch_size=2)
    assert_alike(pipe(TEXTS), wanted)
    assert_alike(list(streamed), wanted)
    assert [size for size, _ in groupby(sizes)] == [4, 8, 4, 2]
    assert pipe.batch_size == 4
    sizes.clear()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda size: pipe(TEXTS, batch_size=size), range(11, 17)))
    assert set(sizes) == {*range(11, 17)}
    with pytest.raises(ValueError, match="expected batch_size of at least 1 but got 0"):
        pipe(TEXTS, batch_size=0)


def test_a_mask_behind_the_cut_is_refused_and_so_is_a_long_text(folders):
    pipe = pipeline("fill-mask", folders["ForMaskedLM"])
    with pytest.raises(ValueError, match="expected the mask token within the first 6 tokens"):
        pipe("walked " * 9 + "[MASK]", max_length=6)
    with pytest.raises(ValueError, match="expected texts of at most 64 tokens but got a longer one"):
        pipe("[MASK] " + LONG, tokenizer_kwargs={"truncation": False})


def test_models_in_memory(folders, encoder, tiny_bert_folder):
    folder = folders["ForSequenceClassification"]
    wanted = pipeline("text-classification", folder)(TEXTS, top_k=None)
    model = BertWithHead.from_pretrained(folder, "float32")
    for tokenizer in (folder, str(folder), Tokenizer.from_pretrained(folder)):
        assert_alike(pipeline("text-classification", model, tokenizer=tokenizer, top_k=None)(TEXTS), wanted)
    for holder in (CrossEncoder.from_pretrained(folder), TextPredictor.from_pretrained(folder)):
        assert_alike(pipeline("text-classification", holder, top_k=None, batch_size=2)(TEXTS), wanted)
    states = pipeline("feature-extraction", folder)(TEXTS[1])
    core = BertCore.from_pretrained(folder, "float32")
    assert_alike(pipeline("feature-extraction", core, tokenizer=folder)(TEXTS[1]), states)
    assert_alike(pipeline("feature-extraction", SentenceEncoder(core, Tokenizer.from_pretrained(folder)))(TEXTS[1]),
                 states)  # fmt: skip
    compared = {"source_sentence": "a dog", "sentences": ["a cat", "the sun"]}
    cosines = (encoder.encode(compared["sentences"]) @ encoder.encode("a dog")).tolist()
    assert pipeline("sentence-similarity", encoder)(compared) == pytest.approx(cosines, abs=1e-5)
    assert len(pipeline("sentence-similarity", core, tokenizer=folder)(compared)) == 2
    own = create_bert_with_head(bert_name=tiny_bert_folder, head_type="regression", num_labels=1)
    (found,) = pipeline("text-classification", own, tokenizer=tiny_bert_folder)("the cat")
    assert found["label"] == "LABEL_0"


def test_what_is_refused(folders):
    folder = folders["ForSequenceClassification"]
    known = "top_k, function_to_apply, truncation, max_length, batch_size, tokenizer_kwargs for TextClassification"
    for make in (lambda **o: pipeline("text-classification", folder, **o),
                 lambda **o: pipeline("text-classification", folder)("a", **o)):  # fmt: skip
        with pytest.raises(ValueError, match=f"expected options among {known} but got device, topk"):
            make(topk=3, device="cpu")
        with pytest.raises(ValueError, match=r"expected tokenizer_kwargs among truncation, max_length for .* got pad"):
            make(tokenizer_kwargs={"padding": True})
    with pytest.raises(ValueError, match="expected tokenizer_kwargs among max_length for TokenClassification"):
        pipeline("ner", folders["ForTokenClassification"], tokenizer_kwargs={"truncation": True})
    model = BertWithHead.from_pretrained(folder)
    with pytest.raises(ValueError, match="expected tokenizer= with a BertWithHead in memory but got NoneType"):
        pipeline("text-classification", model)
    with pytest.raises(ValueError, match="expected tokenizer= with a model in memory alone"):
        pipeline("text-classification", folder, tokenizer=folder)
    with pytest.raises(ValueError, match="expected dtype and revision with a folder or hub id"):
        pipeline("text-classification", model, dtype="float16", tokenizer=folder)
    with pytest.raises(ValueError, match=r"expected a folder, a hub id, or a model such as BertWithHead.* but got int"):
        pipeline("text-classification", 3, tokenizer=folder)
    with pytest.raises(ValueError, match=r"expected a head of type token_classification .* but got multiclass"):
        pipeline("ner", model, tokenizer=folder)
    with pytest.raises(TypeError, match="multiple values for argument 'candidate_labels'"):
        pipeline("zero-shot-classification", folder)("a", ["b"], candidate_labels=["c"])


@pytest.mark.parametrize("task", PIPELINES)
def test_every_pipeline_names_its_options(task):
    assert "self" not in PIPELINES[task].__call__.option_names
    assert PIPELINES[task].__call__.__doc__
