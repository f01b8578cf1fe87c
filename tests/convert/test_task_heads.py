"""Task heads against transformers: tiny models with redrawn weights, each task in both directions."""

import mlx.core as mx
import numpy as np
import pytest

from convert.head_table import CLASS_PREFIX
from convert.task_heads import (
    TASK_HEADS,
    checkpoint_config,
    checkpoint_weights,
    head_from_checkpoint,
    head_tensors,
    head_weights,
    task_of,
)
from heads import HeadConfig, create_head

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
SUFFIXES = {
    "masked_lm": "ForMaskedLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
}
FAMILIES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "modernbert": "ModernBert",
    "albert": "Albert",
    "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "mpnet": "MPNet",
    "eurobert": "EuroBert",
    "gemma3_text": "Gemma3Text",
    "gte": "Gte",
    "jina_embeddings_v3": "JinaEmbeddingsV3",
    "nomic_bert": "NomicBert",
}
GEMMA = {"num_key_value_heads": 1, "head_dim": 8, "use_bidirectional_attention": True}
TASKS = [(family, task) for family in FAMILIES for task in TASK_HEADS[family]]
WITH_MASKED_LM = [family for family, task in TASKS if task == "masked_lm"]
VARIANTS = {
    "plain": {},
    "regression": {"problem_type": "regression", "num_labels": 2},
    "multi_label": {"problem_type": "multi_label_classification", "num_labels": 4},
    "one_label": {"num_labels": 1},
}
CASES = [
    *[(family, task, "plain") for family, task in TASKS],
    *[(family, "sequence_classification", kind) for family in FAMILIES for kind in VARIANTS if kind != "plain"],
]


def reference(family: str, task: str, **changes):
    """A tiny transformers model in eval mode with weights of standard deviation 0.3."""
    name = FAMILIES[family]
    changes = {"num_labels": 3, **(GEMMA if family == "gemma3_text" else {}), **changes}
    config = getattr(transformers, f"{name}Config")(**SIZES, pad_token_id=1, **changes)
    if task == "question_answering":
        config.num_labels = 2
    torch.manual_seed(7)
    model = getattr(transformers, name + SUFFIXES[task])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_norm else 0.0, std=0.3)
    model.config.architectures = [type(model).__name__]
    return model


def arrays(model) -> dict[str, mx.array]:
    return {name: mx.array(tensor.numpy()) for name, tensor in model.state_dict().items()}


def inputs(task: str):
    """Ids and a mask with right padding; two choices per row for multiple choice."""
    rng = np.random.default_rng(3)
    shape = (3, 2, 9) if task == "multiple_choice" else (4, 9)
    ids, mask = torch.tensor(rng.integers(5, 60, shape)), torch.ones(shape, dtype=torch.long)
    mask[1, ..., 5:] = 0
    ids[mask == 0] = 1
    return ids, mask


def run(model, head, task):
    """Reference logits and ours, from the same hidden states."""
    ids, mask = inputs(task)
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask)
        flat = [x.reshape(-1, x.shape[-1]) for x in (ids, mask)]
        hidden = model.base_model(input_ids=flat[0], attention_mask=flat[1]).last_hidden_state
    hidden = mx.array(hidden.reshape(*ids.shape, -1).numpy())
    extra = {}
    if getattr(head, "needs_embeddings", False):
        extra["embeddings"] = mx.array(model.get_input_embeddings().weight.detach().numpy())
    return wanted, head(hidden, mx.array(mask.numpy()), **extra), mask.bool().numpy()


def compare(model, head, task):
    wanted, got, real = run(model, head, task)
    for name in ("start_logits", "end_logits") if task == "question_answering" else ("logits",):
        a, b = getattr(wanted, name).numpy(), np.array(got[name])
        assert a.shape == b.shape
        if task in ("masked_lm", "token_classification", "question_answering"):
            a, b = a[real], b[real]
        assert np.abs(a).max() > 0.1
        np.testing.assert_allclose(b, a, atol=1e-4)


def read_head(model):
    weights = arrays(model)
    config = model.config.to_dict()
    head = create_head(head_from_checkpoint(config, weights))
    head.load_state_arrays(head_weights(config, weights))
    return head.eval() or head


@pytest.mark.parametrize(("family", "task", "kind"), CASES)
def test_head_equals_transformers_in_both_directions(family, task, kind):
    model = reference(family, task, **VARIANTS[kind])
    head = read_head(model)
    compare(model, head, task)

    config = checkpoint_config(model.base_model.config.to_dict() | {"architectures": []}, head.config)
    assert config["architectures"] == model.config.architectures
    other = reference(family, task, **VARIANTS[kind])
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in head_tensors(config, [name]):
                parameter.zero_()
        tensors = {name: torch.tensor(np.array(array)) for name, array in checkpoint_weights(config, head).items()}
        assert other.load_state_dict(tensors, strict=False).unexpected_keys == []
    compare(other, head, task)


@pytest.mark.parametrize("family", WITH_MASKED_LM)
def test_untied_decoder_is_read_and_written(family):
    model = reference(family, "masked_lm", tie_word_embeddings=False)
    head = read_head(model)
    assert not head.needs_embeddings
    compare(model, head, "masked_lm")
    names = set(checkpoint_weights(model.config.to_dict(), head))
    assert names == head_tensors(model.config.to_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("modernbert", {"classifier_pooling": "mean"}),
        ("modernbert", {"classifier_bias": True, "norm_bias": True, "classifier_activation": "silu"}),
        ("modernbert", {"classifier_activation": "gelu_new"}),
    ],
)
def test_options_of_the_classifier_are_honoured(family, changes):
    model = reference(family, "sequence_classification", **changes)
    compare(model, read_head(model), "sequence_classification")


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_masked_lm_activation_is_honoured(activation):
    model = reference("bert", "masked_lm", hidden_act=activation)
    compare(model, read_head(model), "masked_lm")


@pytest.mark.parametrize(
    ("family", "task", "changes"),
    [
        ("albert", "masked_lm", {"hidden_act": "relu", "embedding_size": 12, "layer_norm_eps": 0.1}),
        ("deberta-v2", "masked_lm", {"legacy": False, "hidden_act": "gelu_new"}),
        ("deberta-v2", "masked_lm", {"legacy": False, "tie_word_embeddings": False}),
        ("deberta-v2", "masked_lm", {"embedding_size": 12, "layer_norm_eps": 0.1}),
        ("deberta-v2", "sequence_classification", {"pooler_hidden_act": "tanh"}),
        ("deberta-v2", "multiple_choice", {"pooler_hidden_act": "gelu_new"}),
        ("distilbert", "masked_lm", {"activation": "relu"}),
        ("electra", "masked_lm", {"hidden_act": "relu", "embedding_size": 12}),
        ("electra", "multiple_choice", {"summary_activation": "tanh"}),
        ("electra", "multiple_choice", {"summary_activation": "linear"}),
        ("eurobert", "masked_lm", {"tie_word_embeddings": True}),
        ("eurobert", "masked_lm", {"mlp_bias": True}),
        ("eurobert", "masked_lm", {"mlp_bias": True, "tie_word_embeddings": True}),
        ("gte", "masked_lm", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
        ("jina_embeddings_v3", "masked_lm", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
        ("nomic_bert", "masked_lm", {"tie_word_embeddings": True}),
        ("nomic_bert", "masked_lm", {"hidden_act": "gelu", "layer_norm_eps": 0.1}),
    ],
)
def test_options_of_other_families_are_honoured(family, task, changes):
    model = reference(family, task, **changes)
    compare(model, read_head(model), task)


@pytest.mark.parametrize(
    ("config", "names", "dropouts"),
    [
        ({"model_type": "distilbert", "dropout": 0.6, "seq_classif_dropout": 0.3}, "pre_classifier", (0.0, 0.3)),
        ({"model_type": "electra", "hidden_dropout_prob": 0.3}, "classifier.dense", (0.3, 0.3)),
        (
            {"model_type": "mpnet", "hidden_dropout_prob": 0.3, "classifier_dropout": 0.9},
            "classifier.dense",
            (0.3, 0.3),
        ),
        ({"model_type": "albert", "classifier_dropout_prob": 0.3}, "classifier", (0.3, None)),
        ({"model_type": "albert"}, "classifier", (0.1, None)),
        ({"model_type": "deberta-v2", "cls_dropout": 0.3, "pooler_dropout": 0.2}, "pooler.dense", (0.2, 0.3)),
        ({"model_type": "deberta-v2", "hidden_dropout_prob": 0.4}, "pooler.dense", (0.0, 0.4)),
    ],
)
def test_each_family_keeps_its_own_dropouts(config, names, dropouts):
    config = {**SIZES, "architectures": ["XForSequenceClassification"], **config}
    head = head_from_checkpoint(config, [f"{names}.weight"])
    assert head.input_dropout == dropouts[0]
    if head.hidden_sizes:
        assert head.dropout_prob == dropouts[1]


def test_a_summary_of_another_place_is_refused():
    config = {**SIZES, "model_type": "electra", "architectures": ["ElectraForMultipleChoice"], "summary_type": "last"}
    with pytest.raises(ValueError, match="expected summary_type 'first' with summary_use_proj but got 'last'"):
        head_from_checkpoint(config, ["sequence_summary.summary.weight"])


def test_a_discriminator_is_a_bare_encoder():
    config = {**SIZES, "model_type": "electra", "architectures": ["ElectraForPreTraining"]}
    assert head_from_checkpoint(config, ["discriminator_predictions.dense.weight"]) is None


def test_every_family_has_every_task_that_transformers_has():
    for family, rows in TASK_HEADS.items():
        assert set(rows) == {task for task in SUFFIXES if hasattr(transformers, CLASS_PREFIX[family] + SUFFIXES[task])}


@pytest.mark.parametrize("pooling", ["bos", "mean", "late"])
def test_each_pooling_of_eurobert_in_both_directions(pooling):
    model = reference("eurobert", "sequence_classification", classifier_pooling=pooling)
    head = read_head(model)
    compare(model, head, "sequence_classification")
    bare = {key: value for key, value in model.config.to_dict().items() if key != "classifier_pooling"}
    config = checkpoint_config(bare | {"architectures": []}, head.config)
    assert config["classifier_pooling"] == pooling
    names = {name.removesuffix(".weight") for name in checkpoint_weights(config, head) if name.endswith("weight")}
    assert names == {"dense", "classifier"}


def test_a_pooling_that_eurobert_has_not_is_refused():
    config = {**SIZES, "model_type": "eurobert", "architectures": ["EuroBertForSequenceClassification"]}
    with pytest.raises(ValueError, match="expected classifier_pooling 'bos', 'mean' or 'late' but got 'max'"):
        head_from_checkpoint({**config, "classifier_pooling": "max"}, ["dense.weight", "classifier.weight"])
    head = HeadConfig("multiclass_classification", 16, 3, pooling_type="max")
    with pytest.raises(ValueError, match="expected pooling="):
        checkpoint_config(config, head)


def test_a_class_without_bias_takes_no_offset():
    config = {**SIZES, **GEMMA, "model_type": "gemma3_text", "pad_token_id": 1}
    head = create_head(HeadConfig("regression", 16, pooling_type="last", output_bias=False))
    head.set_target_normalization(0.0, 2.0)
    exported = checkpoint_config(config, head.config)
    assert exported["architectures"] == ["Gemma3TextForSequenceClassification"]
    assert mx.array_equal(checkpoint_weights(exported, head)["score.weight"], 2 * head.output.weight)
    head.set_target_normalization(1.0, 2.0)
    with pytest.raises(ValueError, match="expected targets without an offset"):
        checkpoint_weights(exported, head)
    with pytest.raises(ValueError, match="expected output_bias=False"):
        checkpoint_config(config, HeadConfig("regression", 16, pooling_type="last"))


def test_jina_bert_is_read_but_has_no_class_in_transformers():
    config = {**SIZES, "model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": "geglu"}
    config["architectures"] = ["JinaBertForSequenceClassification"]
    head = head_from_checkpoint(config, ["bert.pooler.dense.weight", "classifier.weight"])
    assert (head.pooling_type, head.output_size) == ("pooler", 2)
    with pytest.raises(ValueError, match="has no equal there"):
        checkpoint_config(config, head)


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ({"id2label": {"0": "LABEL_0"}}, None),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, "regression"),
        ({}, "regression"),
    ],
)
def test_one_label_without_a_problem_type_stays_so(own, wanted):
    config = checkpoint_config(
        {**SIZES, "model_type": "bert", **own}, HeadConfig("regression", 16, pooling_type="pooler")
    )
    assert config.get("problem_type") == wanted


def test_dropout_is_read_from_the_config():
    config = {**SIZES, "model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}
    names = ["classifier.dense.weight", "classifier.out_proj.weight"]
    head = head_from_checkpoint({**config, "hidden_dropout_prob": 0.3}, names)
    assert (head.input_dropout, head.dropout_prob) == (0.3, 0.3)
    head = head_from_checkpoint({**config, "hidden_dropout_prob": 0.3, "classifier_dropout": 0.0}, names)
    assert (head.input_dropout, head.dropout_prob) == (0.0, 0.0)


def test_number_of_labels_comes_from_id2label():
    config = {**SIZES, "model_type": "bert", "architectures": ["BertForTokenClassification"]}
    head = head_from_checkpoint({**config, "id2label": {str(i): str(i) for i in range(9)}}, ["classifier.weight"])
    assert (head.head_type, head.output_size) == ("token_classification", 9)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, ["bert.pooler.dense.weight"]),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, ["bert.pooler.dense.weight"]),
        ({"model_type": "bert"}, ["classifier.weight"]),
        ({"model_type": "t5", "architectures": ["T5ForSequenceClassification"]}, ["classifier.weight"]),
    ],
)
def test_bare_encoders_have_no_head(config, names):
    assert head_from_checkpoint({**SIZES, **config}, names) is None


def test_pretraining_checkpoint_is_a_masked_lm():
    assert task_of({"architectures": ["BertForPreTraining"]}) == "masked_lm"
    names = ["cls.predictions.bias", "cls.seq_relationship.weight", "bert.embeddings.word_embeddings.weight"]
    config = {"model_type": "bert", "architectures": ["BertForPreTraining"]}
    assert head_tensors(config, names) == set(names[:2])


@pytest.mark.parametrize("names", [None, [], 5, "BertForMaskedLM", [["BertForMaskedLM"]]])
def test_architectures_that_name_no_class_name_no_task(names):
    assert task_of({"architectures": names}) is None


def test_old_layer_norm_names_are_read():
    model = reference("bert", "masked_lm")
    weights = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): array for name, array in arrays(model).items()}
    head = create_head(head_from_checkpoint(model.config.to_dict(), weights))
    head.load_state_arrays(head_weights(model.config.to_dict(), weights))
    head.eval()
    compare(model, head, "masked_lm")


def test_target_units_are_folded_into_the_exported_layer():
    config = {**SIZES, "model_type": "bert", "hidden_dropout_prob": 0.1}
    options = {"use_output_scaling": True, "num_targets": 2}
    head = create_head(HeadConfig("regression", 16, pooling_type="pooler", extra=options))
    head.output_scale, head.output_shift = mx.array([2.0, 3.0]), mx.array([0.5, -1.0])
    head.set_target_normalization([1.0, -2.0], [0.5, 4.0])
    head.eval()
    hidden = mx.random.normal((3, 5, 16))
    wanted = head(hidden)["predictions"]
    exported = checkpoint_config(config, head.config)
    other = create_head(head_from_checkpoint(exported, ["classifier.weight"]))
    other.load_state_arrays(head_weights(exported, checkpoint_weights(exported, head)))
    other.eval()
    np.testing.assert_allclose(np.array(other(hidden)["predictions"]), np.array(wanted), atol=1e-5)


def test_unknown_problem_type_is_refused():
    config = {**SIZES, "model_type": "bert", "architectures": ["BertForSequenceClassification"], "problem_type": "x"}
    with pytest.raises(ValueError, match="problem_type"):
        head_from_checkpoint(config, ["classifier.weight"])


def test_head_without_an_equal_is_refused():
    config = {**SIZES, "model_type": "bert"}
    with pytest.raises(ValueError, match="no equal"):
        checkpoint_config(config, HeadConfig("ordinal_regression", 16, 4))
    with pytest.raises(ValueError, match="pooling"):
        checkpoint_config(config, HeadConfig("multiclass_classification", 16, 4, pooling_type="mean"))
    with pytest.raises(ValueError, match="hidden_sizes"):
        checkpoint_config(config, HeadConfig("token_classification", 16, 4, hidden_sizes=[8]))
    with pytest.raises(ValueError, match="use_crf"):
        checkpoint_config(config, HeadConfig("token_classification", 16, 4, extra={"use_crf": True}))


def test_weights_without_a_known_task_are_refused():
    with pytest.raises(ValueError, match="expected a task"):
        head_weights({"model_type": "bert", "architectures": ["BertModel"]}, {})
