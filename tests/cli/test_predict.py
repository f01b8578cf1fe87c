"""``mlx-bert predict``: inputs and outputs of any size, every option honoured or refused."""

import csv
import json

import mlx.core as mx
import pytest
from cli_cases import lines, predictions
from mlx.utils import tree_flatten
from pipeline_cases import LONG, TEXTS, save

from heads import MultiTaskNLPHead
from mlx_bert.cli import predict, predictors
from mlx_bert.core import BertCore
from mlx_bert.factory import create_bert_with_head
from mlx_bert.inference import precision
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.pipelines import FillMask
from mlx_bert.inference.predict import TextPredictor
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer

MASKED = [f"the [MASK] dog walked {'slowly ' * n}" for n in range(7)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders as transformers writes them: {name: (path, task)}."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "classes": ("ForSequenceClassification", {"labels": ["bad", "fine", "good"]}),
        "score": ("ForSequenceClassification", {"num_labels": 1}),
        "words": ("ForMaskedLM", {}),
        "answers": ("ForQuestionAnswering", {}),
        "choices": ("ForMultipleChoice", {}),
        "entities": ("ForTokenClassification", {"labels": ["O", "B-PER", "I-PER"]}),
    }
    for name, (kind, options) in kinds.items():
        save(folder / name, kind, **options)
    return folder


@pytest.mark.parametrize("name", ["classes", "words", "answers", "entities", "pairs"])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_windows_give_what_the_whole_gives(command, models, tmp_path, monkeypatch, name, ending):
    rows = [{"text": text, "id": n, "text_pair": "a dog", "context": LONG, "question": "who?"}
            for n, text in enumerate(MASKED)]  # fmt: skip
    data = lines(tmp_path / "data.jsonl", rows)
    task = {"words": ["--task", "masked_lm"], "pairs": ["--task", "cross_encoder"]}.get(name, [])
    folder = models / ("classes" if name == "pairs" else name)
    seen = {}
    for window in (3, 4096):
        monkeypatch.setattr(predict, "WINDOW", window)
        output = tmp_path / f"{window}.{ending}"
        printed = command("predict", "--model", folder, *task, "--input", data, "--output", output)
        assert printed == f"7 predictions in {output}\n"
        read = csv.DictReader if ending == "csv" else lambda file: map(json.loads, file)
        with output.open() as file:
            seen[window] = list(read(file))
    assert len(seen[3]) == 7
    for ours, whole in zip(seen[3], seen[4096], strict=True):
        assert list(ours) == list(whole)
        assert [ours[name] for name in ours if name in ("id", "text", "label", "answer")] == [
            whole[name] for name in whole if name in ("id", "text", "label", "answer")
        ]
        assert float(ours.get("confidence", 0)) == pytest.approx(float(whole.get("confidence", 0)), abs=1e-5)


def test_one_window_at_a_time_is_read_predicted_and_written(command, models, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "WINDOW", 2)
    events, load = [], predictors.load_predictor

    def load_spied(*given):
        found = load(*given)
        return found._replace(predict=lambda rows: (events.append(f"predict {len(rows)}"), found.predict(rows))[1])

    def texts():
        for text in TEXTS[:3] * 2:
            events.append("read")
            yield text + "\n"

    monkeypatch.setattr(predict, "load_predictor", load_spied)
    monkeypatch.setattr("sys.stdin", texts())
    assert len(predictions(command, models / "classes")) == 6
    assert events == ["read", "read", "predict 2"] * 3


def test_no_output_appears_unless_it_is_whole(command, models, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "WINDOW", 2)
    data = lines(tmp_path / "data.jsonl", [{"text": text} for text in [*MASKED, "no such place"]])
    (tmp_path / "out").mkdir()
    given = ["--model", models / "words", "--task", "masked_lm", "--input", data, "--output", tmp_path / "out/p.csv"]
    assert "expected the mask token [MASK] in 'no such place'" in command("predict", *given, code=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_masks_are_filled_together_and_within_max_length(command, models, monkeypatch):
    calls, call = [], FillMask.__call__
    monkeypatch.setattr(FillMask, "__call__", lambda pipe, texts, **options: calls.append(options) or call(
        pipe, texts, **options))  # fmt: skip
    given = (models / "words", "--task", "masked_lm", *MASKED)
    whole, cut = predictions(command, *given), predictions(command, *given, "--max-length", "9")
    assert len(calls) == 2  # one for all texts of a window
    assert whole[0]["confidence"] == pytest.approx(cut[0]["confidence"], abs=1e-5)
    assert whole[-1]["confidence"] != pytest.approx(cut[-1]["confidence"], abs=1e-5)
    text = "walked " * 9 + "[MASK]"
    assert "expected the mask token within the first 6 tokens" in command(
        "predict", "--model", models / "words", "--task", "masked_lm", text, "--max-length", "6", code=2
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("classes", ["--context", "a"], "expected no --context for a model that reads none"),
        ("classes", ["--choices", "a|b"], "expected no --choices for a model that reads none"),
        ("answers", ["--choices", "a|b", "--context", "a"], "expected no --choices for a model that reads none"),
        ("words", ["--task", "masked_lm", "--context", "a"], "expected no --context"),
        ("choices", ["--choices", "a|b", "--input", "DATA"], "expected no --choices with --input of columns"),
        ("answers", ["--context", "a", "--input", "DATA"], "expected no --context with --input of columns"),
        ("words", ["--task", "masked_lm", "--pair-column", "b", "--input", "DATA"], "expected no --pair-column"),
        ("entities", ["--pair-column", "b", "--input", "DATA"], "expected no --pair-column"),
        ("score", ["--task", "cross_encoder", "--top-k", "2", "--input", "DATA"],
         "expected --top-k of 1 for a cross-encoder of one class but got 2"),
        ("entities", ["--top-k", "2"], "expected top_k of 1 for a token_classification model"),
        ("classes", ["--max-length", "0"], "expected --max-length of at least 1 but got 0"),
    ],
)  # fmt: skip
def test_options_that_a_model_cannot_honour_are_refused(command, models, tmp_path, model, options, message):
    data = lines(tmp_path / "data.jsonl", [{"text": "a", "b": "c", "text_pair": "d", "question": "q", "context": "c"}])
    given = [data if option == "DATA" else option for option in options]
    texts = [] if "DATA" in options else ["a [MASK]"]
    assert message in command("predict", "--model", models / model, *texts, *given, code=2)


@pytest.mark.parametrize("name", ["classes", "words", "pairs"])
@pytest.mark.parametrize(
    ("options", "wanted"),
    [(["--dtype", "bfloat16"], mx.bfloat16), (["--dtype", "stored"], mx.float32), ([], mx.float16)],
)
def test_the_type_to_compute_in(command, models, tmp_path, monkeypatch, name, options, wanted):
    """Every encoder is loaded in it; without one in float16, on what is taken for a GPU here."""
    types = set()
    load = predictors.load_predictor

    def spied(*given):
        found = load(*given)
        cells = [cell.cell_contents for cell in found.predict.__closure__]
        (holder,) = (cell for cell in cells if isinstance(cell, CrossEncoder | FillMask | TextPredictor))
        types.update(array.dtype for _, array in tree_flatten(holder.model.bert.parameters()))
        return found

    monkeypatch.setattr(predict, "load_predictor", spied)
    monkeypatch.setattr(precision, "on_gpu", lambda: True)
    data = lines(tmp_path / "data.jsonl", [{"text": "a [MASK]", "text_pair": "b"}])
    task = {"words": ["--task", "masked_lm"], "pairs": ["--task", "cross_encoder"]}.get(name, [])
    folder = models / ("classes" if name == "pairs" else name)
    predictions(command, folder, *task, "--input", data, *options)
    assert types == {wanted}


def test_values_have_no_best(command, tiny_bert_folder, tmp_path):
    model = create_bert_with_head(bert_name=tiny_bert_folder, head_type="regression", num_labels=1)
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    given = ("predict", "--model", tmp_path / "model", "the cat", "--top-k", "2")
    assert "expected --top-k of 1 for a model without classes but got 2" in command(*given, code=2)
    assert isinstance(TextPredictor.from_pretrained(tmp_path / "model").predict(["the cat"])[0]["value"], float)


def test_lines_that_are_not_utf8_are_named(command, models, tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"a dog\n\xff\n")
    given = ("predict", "--model", models / "classes", "--input", tmp_path / "texts.txt")
    assert "texts.txt line 2 is not UTF-8" in command(*given, code=2)


def test_tags_beside_classes(command, tiny_bert_folder, tmp_path):
    tasks = [{"name": "tags", "task_type": "named_entity_recognition", "num_classes": 3},
             {"name": "mood", "task_type": "text_classification", "num_classes": 2}]  # fmt: skip
    model = BertWithHead(BertCore.from_pretrained(tiny_bert_folder), MultiTaskNLPHead(tasks, 32))
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    (row,) = predictions(command, tmp_path / "model", "the good cat", "--top-k", "2")
    assert list(row) == ["text", "tags_entities", "mood", "mood_confidence", "mood_scores"]
    assert row["tags_entities"][0]["word"]
    (line,) = command("predict", "--model", tmp_path / "model", "the good cat").splitlines()
    assert line.startswith(f"mood {row['mood']} {row['mood_confidence']:.4f}, tags LABEL_")
