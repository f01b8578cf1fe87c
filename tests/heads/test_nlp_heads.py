"""create_nlp_head and the multi-task head: the documented quick starts, the dispatch, the options."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from heads import (
    MultipleChoiceHead,
    MultiTaskNLPHead,
    NLPHeadConfiguration,
    NLPTaskConfig,
    NLPTaskType,
    QuestionAnsweringHead,
    RankingHead,
    TextClassificationHead,
    TextGenerationHead,
    TextSimilarityHead,
    TokenClassificationHead,
    create_head,
    create_multi_task_nlp_head,
    create_nlp_head,
)
from heads.nlp import HEAD_OF_TASK

D, L = 24, 5
HIDDEN = mx.random.normal((2, L, D))
MASK = mx.array([[1] * 5, [1, 1, 0, 0, 0]])
DISPATCH = {
    TextClassificationHead: "TEXT_CLASSIFICATION SENTIMENT_ANALYSIS EMOTION_DETECTION INTENT_CLASSIFICATION "
    "TOPIC_CLASSIFICATION SPAM_DETECTION NATURAL_LANGUAGE_INFERENCE TEXT_REGRESSION READABILITY_SCORING "
    "QUALITY_SCORING",
    TokenClassificationHead: "TOKEN_CLASSIFICATION NAMED_ENTITY_RECOGNITION PART_OF_SPEECH_TAGGING SEQUENCE_LABELING "
    "SEMANTIC_ROLE_LABELING WORD_SENSE_DISAMBIGUATION KEY_PHRASE_EXTRACTION FACT_EXTRACTION OPINION_EXTRACTION",
    QuestionAnsweringHead: "QUESTION_ANSWERING SPAN_EXTRACTION",
    TextSimilarityHead: "TEXT_SIMILARITY PARAPHRASE_DETECTION DUPLICATE_DETECTION TEXT_MATCHING",
    TextGenerationHead: "TEXT_GENERATION MASKED_LANGUAGE_MODELING TEXT_SUMMARIZATION TEXT_COMPLETION "
    "MACHINE_TRANSLATION DIALOGUE_GENERATION",
    MultipleChoiceHead: "MULTIPLE_CHOICE",
    RankingHead: "RANKING",
}
REFUSED = {"dependency_parsing", "coreference_resolution", "event_extraction", "relation_extraction"}


def task(name: str, **fields) -> NLPTaskConfig:
    kind = NLPTaskType.from_string(name)
    if kind in NLPTaskType.get_task_categories()["generation"]:
        fields.setdefault("vocabulary_size", 11)
    elif kind not in NLPTaskType.get_task_categories()["regression"]:
        fields.setdefault("num_classes", 3)
    return NLPTaskConfig(name="task", task_type=kind, **fields)


@pytest.mark.parametrize(("head", "name"), [(head, name) for head, names in DISPATCH.items() for name in names.split()])
def test_dispatch(head, name):
    assert type(create_nlp_head(task(name), D)) is head


def test_the_rest_is_refused_by_name():
    mapped = {name.lower() for names in DISPATCH.values() for name in names.split()}
    assert {kind.value for kind in NLPTaskType} - mapped == REFUSED
    assert {kind.value for kind in HEAD_OF_TASK} == mapped
    for name in REFUSED:
        with pytest.raises(ValueError, match=rf"named_entity_recognition.*but got '{name}'"):
            create_nlp_head(task(name), D)


def test_quick_start_of_the_universal_pattern():
    task_config = NLPTaskConfig(name="my_task", task_type=NLPTaskType.TEXT_CLASSIFICATION, num_classes=2)
    head = create_nlp_head(task_config=task_config, input_dim=D)
    head_inputs = {"hidden_states": HIDDEN, "attention_mask": MASK}
    task_outputs = head(head_inputs)
    assert task_outputs["logits"].shape == task_outputs["probabilities"].shape == (2, 2)
    assert head.config.name == "my_task_head"
    assert head({"hidden_states": HIDDEN, "attention_mask": None})["logits"].shape == (2, 2)
    assert head(HIDDEN[:, 0])["logits"].shape == (2, 2)


def test_quick_starts_of_each_head():
    config = NLPTaskConfig(name="sentiment", task_type=NLPTaskType.SENTIMENT_ANALYSIS, num_classes=3)
    head = create_nlp_head(config, input_dim=D, pooling_type="cls")
    assert head(HIDDEN)["probabilities"].shape == (2, 3)

    config = NLPTaskConfig(name="ner", task_type=NLPTaskType.NAMED_ENTITY_RECOGNITION, num_classes=9)
    outputs = create_nlp_head(config, input_dim=D)(HIDDEN)
    assert (outputs["logits"].shape, outputs["predictions"].shape) == ((2, L, 9), (2, L))
    with pytest.raises(ValueError, match=r"\(B, L, D\)"):
        create_nlp_head(config, input_dim=D)(HIDDEN[:, 0])

    config = NLPTaskConfig(name="squad", task_type=NLPTaskType.QUESTION_ANSWERING)
    outputs = create_nlp_head(config, input_dim=D)(HIDDEN)
    assert outputs["start_logits"].shape == outputs["end_logits"].shape == (2, L)

    config = NLPTaskConfig(name="mlm", task_type=NLPTaskType.MASKED_LANGUAGE_MODELING, vocabulary_size=99)
    assert create_nlp_head(config, input_dim=D)(HIDDEN)["logits"].shape == (2, L, 99)

    config = NLPTaskConfig(name="swag", task_type=NLPTaskType.MULTIPLE_CHOICE)
    outputs = create_nlp_head(config, input_dim=D, pooling_type="cls")(mx.random.normal((2, 4, L, D)))
    assert outputs["logits"].shape == outputs["probabilities"].shape == (2, 4)


def test_quick_start_of_similarity():
    config = NLPTaskConfig(name="sts", task_type=NLPTaskType.TEXT_SIMILARITY)
    head = create_nlp_head(config, input_dim=D, similarity_function="cosine")
    head.eval()
    seq1, seq2 = HIDDEN, mx.random.normal((2, 3, D))
    embeds = head({"hidden_states": seq1})["embeddings"]
    outputs = head((seq1, seq2))
    assert (embeds.shape, outputs["similarity_score"].shape) == ((2, D), (2,))
    first, second = np.array(embeds), np.array(head(seq2)["embeddings"])
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(np.array(outputs["similarity_score"]), cosine, atol=1e-5)
    assert mx.array_equal(outputs["embeddings_1"], embeds)
    assert mx.array_equal(head([seq1, seq2])["similarity_score"], outputs["similarity_score"])
    masked = head(({"hidden_states": seq1, "attention_mask": MASK}, seq2))
    junk = mx.where(mx.expand_dims(MASK, -1) == 1, seq1, 9.0)
    again = head(({"hidden_states": junk, "attention_mask": MASK}, seq2))
    assert mx.allclose(masked["similarity_score"], again["similarity_score"])
    short = create_nlp_head(config, D, output_embeddings=False)((seq1, seq2))
    assert set(short) == {"similarity_score"}
    with pytest.raises(ValueError, match="two inputs"):
        head((seq1, seq2, seq1))
    with pytest.raises(ValueError, match="similarity_function"):
        create_nlp_head(config, D, similarity_function="jaccard")


def test_losses_of_pairs():
    first, second, targets = mx.random.normal((3, 4)), mx.random.normal((3, 4)), mx.array([1.0, 0.0, 1.0])
    outputs = {"similarity_score": mx.array([0.5, -1.0, 2.0]), "embeddings_1": first, "embeddings_2": second}

    def loss(**options) -> float:
        return create_nlp_head(task("text_similarity"), D, **options).compute_loss(outputs, targets).item()

    score, y = np.array(outputs["similarity_score"]), np.array(targets)
    assert loss() == pytest.approx(((score - y) ** 2).mean(), abs=1e-6)
    bce = np.log1p(np.exp(score)) - y * score
    assert loss(loss="bce", similarity_function="dot") == pytest.approx(bce.mean(), abs=1e-6)
    d = np.linalg.norm(np.array(first - second), axis=1)
    pairs = y * d**2 + (1 - y) * np.maximum(0, 2 - d) ** 2
    assert loss(loss="pair_contrastive", margin=2.0) == pytest.approx(pairs.mean(), abs=1e-4)
    a, b = (np.array(x) / np.linalg.norm(np.array(x), axis=1, keepdims=True) for x in (first, second))
    logits = 20 * a @ b.T
    wanted = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])
    assert loss(loss="multiple_negatives") == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(ValueError, match="outputs of pairs"):
        create_nlp_head(task("text_similarity"), D).compute_loss({"embeddings": first}, targets)
    with pytest.raises(ValueError, match="bce not with cosine"):
        loss(loss="bce")
    with pytest.raises(ValueError, match="output_embeddings=True"):
        loss(loss="multiple_negatives", output_embeddings=False)


def test_inputs_of_several_texts_are_checked():
    with pytest.raises(ValueError, match=r"pairs \(B, 2, L, D\)"):
        create_nlp_head(task("text_similarity"), D)(mx.zeros((2, 3, L, D)))
    with pytest.raises(ValueError, match=r"\(B, N, L, D\) or \(B, N, D\)"):
        create_nlp_head(task("multiple_choice"), D)(mx.zeros((2, D)))
    pooled = create_nlp_head(task("multiple_choice"), D)(mx.random.normal((2, 4, D)))
    assert pooled["logits"].shape == (2, 4)


def test_dot_and_learned_similarity():
    config = task("text_similarity", hidden_size=6)
    other = mx.random.normal((2, 3, D))
    dot = create_nlp_head(config, D, similarity_function="dot", activation_type="relu")
    learned = create_nlp_head(config, D, similarity_function="learned", activation_type="relu")
    dot.eval(), learned.eval()
    outputs = dot((HIDDEN, other))
    assert outputs["embeddings_1"].shape == (2, 6)
    wanted = mx.sum(outputs["embeddings_1"] * outputs["embeddings_2"], axis=1)
    assert mx.allclose(outputs["similarity_score"], wanted, atol=1e-5)
    outputs = learned((HIDDEN, other))
    a, b = outputs["embeddings_1"], outputs["embeddings_2"]
    joined = mx.concatenate([a, b, a * b, mx.abs(a - b)], axis=1)
    wanted = learned.pair_output(nn.relu(learned.pair_dense(joined)))[:, 0]
    assert mx.allclose(outputs["similarity_score"], wanted, atol=1e-5)
    assert learned.pair_dense.weight.shape == (6, 24)


def test_a_mapping_is_a_task_too():
    head = create_nlp_head({"name": "x", "task_type": "Sentiment_Analysis", "num_labels": 4}, input_dim=D)
    assert head(HIDDEN)["logits"].shape == (2, 4)


@pytest.mark.parametrize("input_dim", [None, 0, -3, 2.5])
def test_input_dim_is_required(input_dim):
    with pytest.raises(ValueError, match="input_dim"):
        create_nlp_head(task("sentiment_analysis"), input_dim)


def test_widths():
    config = task("sentiment_analysis")
    assert create_nlp_head(config, D).config.hidden_sizes == [D]
    assert create_nlp_head(config, D, intermediate_size=8).projection_output_size == 8
    wide = task("sentiment_analysis", hidden_size=10)
    assert create_nlp_head(wide, D, intermediate_size=8).projection_output_size == 10
    plain = create_nlp_head(wide, D, use_intermediate=False)
    assert (plain.config.hidden_sizes, plain.output.weight.shape) == ([], (3, D))
    with_ffn = create_nlp_head(wide, D, use_intermediate=False, use_ffn=True, use_task_attention=True)
    assert with_ffn.output.weight.shape == (3, 10)
    assert with_ffn(HIDDEN, MASK)["logits"].shape == (2, 3)


def test_dropout_of_the_task_wins():
    assert create_nlp_head(task("sentiment_analysis"), D).config.dropout_prob == 0.1
    assert create_nlp_head(task("sentiment_analysis"), D, dropout_rate=0.3).config.dropout_prob == 0.3
    strict = task("sentiment_analysis", dropout_rate=0.0)
    assert create_nlp_head(strict, D, dropout_rate=0.3).config.input_dropout == 0.0


def test_defaults_of_the_language_heads():
    config = create_nlp_head(task("sentiment_analysis"), D).config
    assert (config.pooling_type, config.normalization_type, config.activation) == ("cls", "layer_norm", "gelu")
    assert not config.use_task_attention
    assert not config.use_ffn
    assert config.use_input_norm


@pytest.mark.parametrize("name", ["sentiment_analysis", "ner", "qa", "text_similarity", "mlm", "multiple_choice"])
@pytest.mark.parametrize("option", [{"use_task_attention": True}, {"use_ffn": True}])
def test_attention_and_ffn_change_every_head(name, option):
    names = {"ner": "named_entity_recognition", "qa": "question_answering", "mlm": "masked_language_modeling"}
    config = task(names.get(name, name))
    mx.random.seed(0)
    head = create_nlp_head(config, D, **option)
    head.eval()
    x = mx.random.normal((2, 3, L, D)) if name == "multiple_choice" else HIDDEN
    key = {"qa": "start_logits", "text_similarity": "embeddings"}.get(name, "logits")
    before = head(x)[key]
    module = head.task_attention if "use_task_attention" in option else head.projection.ffn
    module.update(nn.utils.tree_map(lambda p: p + 0.5 * mx.random.normal(p.shape), module.parameters()))
    assert not mx.allclose(before, head(x)[key], atol=1e-4)


def test_token_heads_do_not_pool():
    with pytest.raises(ValueError, match="use_pooling=False"):
        create_nlp_head(task("named_entity_recognition"), D, use_pooling=True)
    with pytest.raises(ValueError, match="use_crf"):
        create_nlp_head(task("sentiment_analysis", use_crf=True), D)
    assert "transitions" in create_nlp_head(task("named_entity_recognition", use_crf=True), D)


def test_attention_pooling_by_task():
    head = create_nlp_head(task("sentiment_analysis", use_attention_pooling=True), D)
    assert head.config.pooling_type == "attention"


def test_label_smoothing_and_class_weights_reach_the_loss():
    logits, labels = mx.array([[2.0, 0, -1], [0.5, 1.5, 0]]), mx.array([0, 2])
    plain = create_nlp_head(task("sentiment_analysis", label_smoothing=0.1), D)
    assert plain.compute_loss({"logits": logits}, labels).item() == pytest.approx(1.117107, abs=1e-5)  # V-02
    both = create_nlp_head(task("sentiment_analysis", label_smoothing=0.1), D, class_weights=[1, 2, 0.5])
    assert both.compute_loss({"logits": logits}, labels).item() == pytest.approx(0.901657, abs=1e-5)  # V-01
    focal = create_nlp_head(task("sentiment_analysis"), D, loss="focal")
    assert focal.compute_loss({"logits": logits}, labels).item() == pytest.approx(0.728083, abs=1e-5)  # V-03


def test_regression_tasks():
    head = create_nlp_head(task("quality_scoring"), D)
    outputs = head(HIDDEN)
    assert (outputs["logits"].shape, outputs["value"].shape) == ((2, 1), (2,))
    assert "probabilities" not in outputs
    targets = mx.array([1.0, -2.0])
    wanted = mx.mean(mx.square(outputs["value"] - targets))
    assert mx.allclose(head.compute_loss(outputs, targets), wanted)
    assert mx.allclose(head.compute_loss(outputs, mx.expand_dims(targets, 1)), wanted)


def test_causal_loss_is_shifted():
    logits, labels = mx.random.normal((2, L, 11)), mx.array([[1, 2, 3, 4, 5], [6, 7, 8, -100, -100]])
    causal, mlm = (create_nlp_head(task(name), D) for name in ("text_generation", "masked_language_modeling"))
    shifted = mlm.compute_loss({"logits": logits[:, :-1]}, labels[:, 1:])
    assert mx.allclose(causal.compute_loss({"logits": logits}, labels), shifted)
    assert not mx.allclose(mlm.compute_loss({"logits": logits}, labels), shifted)


def test_tied_decoder_and_selected_positions():
    head = create_nlp_head(task("masked_language_modeling"), D, tie_embeddings=True)
    head.eval()
    table = nn.Embedding(11, D)
    everything = head(HIDDEN, MASK, embeddings=table)["logits"]
    assert mx.allclose(everything, head(HIDDEN, MASK, embeddings=table.weight)["logits"], atol=1e-5)
    positions = mx.array([[0, 3], [1, 0]])
    some = head(HIDDEN, MASK, embeddings=table, positions=positions)["logits"]
    wanted = mx.take_along_axis(everything, mx.expand_dims(positions, -1), axis=1)
    np.testing.assert_allclose(np.array(some), np.array(wanted), atol=1e-5)
    with pytest.raises(ValueError, match="tie_embeddings=True"):
        head(HIDDEN)
    with pytest.raises(ValueError, match=r"\(11, 24\)"):
        head(HIDDEN, embeddings=mx.zeros((11, 7)))
    with pytest.raises(ValueError, match="tie_embeddings=False"):
        create_nlp_head(task("masked_language_modeling"), D)(HIDDEN, embeddings=table)


def test_the_mask_follows_the_selected_positions():
    config = task("masked_language_modeling", dropout_rate=0.0)
    head = create_nlp_head(config, D, normalization_type="batch_norm")
    positions = mx.array([[0, 3], [1, 4]])  # the last one is padding
    found = head(HIDDEN, MASK, positions=positions)["logits"]
    real = mx.stack([HIDDEN[0, 0], HIDDEN[0, 3], HIDDEN[1, 1]])
    wanted = head(mx.expand_dims(real, 0))["logits"][0]
    np.testing.assert_allclose(np.array(found).reshape(4, -1)[:3], np.array(wanted), atol=1e-5)


@pytest.mark.parametrize("name", [name for names in DISPATCH.values() for name in names.split()])
def test_recommended_options_run(name):
    options = NLPHeadConfiguration.get_default_config(name.lower())
    head = create_nlp_head(task(name), D, **options)
    assert options["dropout_rate"] == 0.1
    x = mx.random.normal((2, 3, L, D)) if name in ("MULTIPLE_CHOICE", "RANKING") else HIDDEN
    assert head(x)
    wanted = {"QUESTION_ANSWERING": head.config.use_task_attention, "TEXT_GENERATION": head.config.ffn_type == "swiglu"}
    assert wanted.get(name, True)


def tasks() -> list[NLPTaskConfig]:
    return [
        NLPTaskConfig("ner", NLPTaskType.NAMED_ENTITY_RECOGNITION, num_classes=9, loss_weight=0.5),
        NLPTaskConfig("sentiment", NLPTaskType.SENTIMENT_ANALYSIS, num_classes=3, hidden_size=12),
    ]


def test_multi_task_quick_start():
    inputs = {"hidden_states": HIDDEN, "attention_mask": MASK}
    multi_head = create_multi_task_nlp_head(tasks(), D)
    outputs = multi_head(inputs)
    assert list(outputs) == ["ner", "sentiment"]
    assert outputs["ner"]["logits"].shape == (2, L, 9)
    only = multi_head(inputs, task_name="ner")
    assert set(only) == {"logits", "probabilities", "predictions"}
    by_name = create_multi_task_nlp_head({"a": tasks()[0], "b": tasks()[1].to_dict()}, D)
    assert list(by_name(inputs)) == ["a", "b"]


def test_one_task_computes_no_other():
    multi_head = MultiTaskNLPHead(tasks(), D)

    def broken(*args, **kwargs):
        raise AssertionError("computed")

    multi_head.task_heads["sentiment"].forward = broken
    assert multi_head(HIDDEN, task_name="ner")
    with pytest.raises(AssertionError, match="computed"):
        multi_head(HIDDEN)


def test_multi_task_projections_and_options():
    multi_head = create_multi_task_nlp_head(
        tasks(), D, True, pooling_type="mean", head_kwargs={"sentiment": {"pooling_type": "max"}}
    )
    assert multi_head.projections["sentiment"].weight.shape == (12, D)
    assert multi_head.projections["ner"].weight.shape == (D, D)
    assert multi_head.task_heads["sentiment"].config.input_size == 12
    assert multi_head.task_heads["sentiment"].config.pooling_type == "max"
    multi_head.eval()
    alone = multi_head.task_heads["sentiment"](multi_head.projections["sentiment"](HIDDEN), MASK)
    assert mx.allclose(multi_head(HIDDEN, MASK)["sentiment"]["logits"], alone["logits"])
    assert "projections" not in create_multi_task_nlp_head(tasks(), D)


def test_multi_task_loss_weights_and_missing_tasks():
    multi_head = create_multi_task_nlp_head(tasks(), D)
    multi_head.eval()
    outputs = multi_head(HIDDEN, MASK)
    targets = {"ner": mx.array([[1, 2, 3, 4, 5], [6, 7, -100, -100, -100]]), "sentiment": mx.array([0, 2])}
    each = multi_head.compute_losses(outputs, targets)
    total = multi_head.compute_loss(outputs, targets)
    assert mx.allclose(total, 0.5 * each["ner"] + each["sentiment"])
    only = multi_head.compute_loss(outputs, {"ner": targets["ner"], "sentiment": None})
    assert mx.allclose(only, 0.5 * each["ner"])
    metrics = multi_head.compute_metrics(outputs, targets)
    assert {"ner_accuracy", "sentiment_accuracy"} <= set(metrics)
    with pytest.raises(ValueError, match="at least one task"):
        multi_head.compute_loss(outputs, {})
    with pytest.raises(ValueError, match="but got poetry"):
        multi_head.compute_loss(outputs, {"poetry": mx.array([1])})


def test_multi_task_errors():
    with pytest.raises(ValueError, match="different names"):
        create_multi_task_nlp_head([tasks()[0], tasks()[0]], D)
    with pytest.raises(ValueError, match="but got poetry"):
        create_multi_task_nlp_head(tasks(), D)(HIDDEN, task_name="poetry")
    with pytest.raises(ValueError, match="but got poetry"):
        create_multi_task_nlp_head(tasks(), D, head_kwargs={"poetry": {}})
    with pytest.raises(ValueError, match="shared_input_dim"):
        MultiTaskNLPHead(tasks())
    with pytest.raises(ValueError, match="without dots"):
        create_multi_task_nlp_head({"a.b": tasks()[0]}, D)
    with pytest.raises(ValueError, match="shared_options"):
        create_head({**MultiTaskNLPHead(tasks(), D).get_config(), "hidden_sizes": [4]})
