"""Exported folders load in transformers and sentence-transformers with equal outputs."""

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_map
from sentence_transformers import SentenceTransformer

from convert import convert
from convert.export import export_checkpoint
from heads import MultiTaskNLPHead, NLPTaskConfig
from mlx_bert import BertCore, BertWithHead, Tokenizer, create_bert_with_head
from mlx_bert.multihead import MultiheadClassifier

TEXTS = ["the dog is good", "a bad and awful movie today, never again"]
NAMES = {0: "bad", 1: "fair", 2: "good"}


def tuned(folder, **head) -> BertWithHead:
    """A model whose weights are no longer those of the checkpoint."""
    mx.random.seed(1)
    config = {"head_type": "multiclass_classification", "pooling_type": "pooler", **head}
    model = create_bert_with_head(bert_name=folder, head_config=config, num_labels=3, id2label=NAMES).eval()
    model.update(tree_map(lambda array: array + 0.05 * mx.random.normal(array.shape), model.parameters()))
    return model


def run_both(model: BertWithHead, source, folder) -> tuple[np.ndarray, np.ndarray]:
    batch = Tokenizer.from_pretrained(source)(TEXTS)
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    reference, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    assert np.array_equal(tokens["input_ids"].numpy(), np.array(batch.input_ids))
    with torch.no_grad():
        wanted = reference.eval()(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    got = model(*batch)
    name = "logits" if "logits" in wanted else "start_logits"
    return np.array(got[name]), wanted[name].numpy()


@pytest.mark.parametrize(
    ("head", "architecture", "problem"),
    [
        ({}, "BertForSequenceClassification", "single_label_classification"),
        ({"head_type": "multilabel_classification"}, "BertForSequenceClassification", "multi_label_classification"),
        ({"head_type": "regression"}, "BertForSequenceClassification", "regression"),
        ({"head_type": "token_classification", "pooling_type": "cls"}, "BertForTokenClassification", None),
        ({"head_type": "question_answering", "pooling_type": "cls"}, "BertForQuestionAnswering", None),
    ],
)
def test_a_fine_tuned_head_becomes_its_task_class(tiny_bert_folder, tmp_path, head, architecture, problem):
    model = tuned(tiny_bert_folder, **head)
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    (folder,) = export_checkpoint(tmp_path / "model", tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.architectures == [architecture]
    assert config.problem_type == problem
    if config.num_labels == 3:
        assert config.id2label == NAMES
    got, wanted = run_both(model, tiny_bert_folder, folder)
    real = np.array(Tokenizer.from_pretrained(tiny_bert_folder)(TEXTS).attention_mask)
    if architecture.endswith(("TokenClassification", "QuestionAnswering")):
        got, wanted = got[real], wanted[real]
    assert np.abs(got - wanted).max() < 1e-4


def test_several_heads_are_split(tiny_bert_folder, tmp_path):
    tasks = [
        NLPTaskConfig("mood", "sentiment_analysis", num_classes=3),
        NLPTaskConfig("tags", "named_entity_recognition", num_classes=4),
    ]
    core = BertCore.from_pretrained(tiny_bert_folder)
    options = {"use_intermediate": False, "use_input_norm": False}
    head = MultiTaskNLPHead(tasks, 32, head_kwargs={"mood": {"pooling_type": "pooler"}}, **options)
    model = BertWithHead(core, head).eval()
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    folders = export_checkpoint(tmp_path / "model", tmp_path / "out")
    assert [folder.name for folder in folders] == ["mood", "tags"]
    batch = Tokenizer.from_pretrained(tiny_bert_folder)(TEXTS)
    together = model(*batch)
    real = np.array(batch.attention_mask)
    for folder, task in zip(folders, ("mood", "tags"), strict=True):
        alone = BertWithHead.from_pretrained(folder)
        difference = np.abs(np.array(alone(*batch)["logits"]) - np.array(together[task]["logits"]))
        assert (difference[real] if task == "tags" else difference).max() < 1e-5
        transformers.AutoModel.from_pretrained(folder)


def test_a_multihead_classifier_is_split(tiny_bert_folder, tmp_path):
    data = {"mood": [{"text": text, "label": n} for n, text in enumerate(TEXTS)]}
    training = {"model_name": str(tiny_bert_folder), "output_dir": str(tmp_path / "runs"), "epochs": 1}
    settings = {"training": training, "pooling": "cls", "head": {"hidden_layers": 0}, "encoder": {"freeze_epochs": 0}}
    classifier = MultiheadClassifier(settings)
    classifier.train(data, progress=False)
    classifier.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"pooling="):  # BERT's class has a pooler, which this head has not
        export_checkpoint(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantised", [False, True])
def test_a_converted_checkpoint(minilm_source, tmp_path, quantised):
    converted = convert(minilm_source, tmp_path / "converted", quantization={} if quantised else None)
    (folder,) = export_checkpoint(converted, tmp_path / "out")
    ours = BertCore.from_pretrained(converted)
    batch = Tokenizer.from_pretrained(converted)(TEXTS)
    reference = SentenceTransformer(str(folder), device="cpu")
    wanted = reference.encode(TEXTS)
    pooled = np.array(ours(*batch).mean_pooled)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert np.abs(pooled - wanted).max() < 1e-4


def test_what_transformers_has_not_is_refused(tiny_bert_folder, tmp_path):
    model = create_bert_with_head(bert_name=tiny_bert_folder, head_type="ranking")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="'ranking', which has no equal"):
        export_checkpoint(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        export_checkpoint(tmp_path / "none", tmp_path / "out")


def test_the_type_can_change(tiny_bert_folder, tmp_path):
    tuned(tiny_bert_folder).save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    (folder,) = export_checkpoint(tmp_path / "model", tmp_path / "out", dtype="bfloat16")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
