"""Known traps of encoder checkpoints: where each is tested, and tests for those that belong to no single module."""

from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
import torch
import transformers
from mlx import nn
from mlx.utils import tree_flatten

from convert.export import export_checkpoint
from mlx_bert import BertWithHead, Tokenizer
from mlx_bert.checkpoint import write_json
from reference import redraw, save_word_tokenizer, word_tokenizer

TESTS = Path(__file__).parent
PARITY = "convert/test_task_checkpoints.py::test_logits_equal_transformers"
TRAPS = {
    "the pad id is the tokenizer's, not the config's": ["test_tokenizer.py::test_the_pad_id_is_the_tokenizers_own"],
    "positions start behind the pad id": [
        "encoders/test_roberta.py::test_positions_start_behind_the_pad_id_and_skip_padding",
        "encoders/test_mpnet.py::test_positions_start_behind_the_pad_id_and_leave_room_for_it",
        "encoders/test_bert.py::test_parity",
    ],
    "segments: none, one, or significant": [
        "encoders/test_distilbert.py::test_segments_are_passed_over",
        "encoders/test_roberta.py::test_segments_of_a_pair_do_not_leave_the_single_segment_table",
        "test_traps.py::test_segments_of_a_pair_count",
    ],
    "exact GELU or tanh, the activation of each head": [
        "encoders/test_cpu.py::test_gelu_is_the_exact_one",
        "convert/test_task_heads.py::test_masked_lm_activation_is_honoured",
        "convert/test_task_heads.py::test_options_of_other_families_are_honoured",
        PARITY,
    ],
    "names of DistilBERT, ALBERT and ELECTRA, narrow embeddings": [
        "encoders/test_albert.py::test_names_on_disk_are_those_of_transformers",
        "encoders/test_electra.py::test_parity",
        "encoders/test_from_checkpoint.py::test_every_spelling_converts_and_loads",
        PARITY,
    ],
    "ModernBERT: window, two config styles, heads": [
        "encoders/test_modernbert.py::test_a_local_layer_sees_half_the_window_to_each_side",
        "encoders/test_modernbert.py::test_both_config_styles_give_the_same_config",
        "convert/test_task_heads.py::test_options_of_the_classifier_are_honoured",
        PARITY,
    ],
    "DeBERTa: buckets, shared keys, float16, pooler without prefix": [
        "encoders/test_deberta_v2.py::test_every_distance_falls_into_its_bucket",
        "encoders/test_deberta_v2.py::test_parity",
        "encoders/test_deberta_v2.py::test_float16_holds_scores_that_are_large_before_their_scaling",
        PARITY,
    ],
    "MPNet's bias is shared by the layers": ["encoders/test_mpnet.py::test_every_distance_falls_into_its_bucket"],
    "impostors": [
        "encoders/test_jina_bert.py::test_a_config_that_says_bert_is_told_by_its_keys",
        "encoders/test_jina_v3.py::test_a_config_that_says_xlm_roberta_is_told_by_its_keys",
        "convert/test_conversion.py::test_impostor",
        "convert/test_task_heads.py::test_jina_bert_is_read_but_has_no_class_in_transformers",
    ],
    "a tied decoder that the file omits, and that stays tied": [
        "convert/test_conversion.py::test_masked_lm_with_a_tied_decoder_that_the_file_omits",
        "test_traps.py::test_training_keeps_the_decoder_tied",
    ],
    "labels with string keys; one label takes a sigmoid": [
        "convert/test_task_settings.py::test_labels_and_problem",
        "convert/test_task_heads.py::test_one_label_without_a_problem_type_stays_so",
        "inference/test_pipelines.py::test_text_classification",
    ],
    "the activation of a cross-encoder": [
        "convert/test_task_settings.py::test_the_activation_of_a_cross_encoder",
        "inference/test_cross_encoder.py::test_the_activation_that_config_json_asks_for",
    ],
    "pooling without the prompt; rows of padding alone": [
        "inference/test_encode.py::test_prompts",
        "inference/test_sentence_modules.py::test_prompt_left_out",
        "inference/test_sentence_modules.py::test_a_row_of_padding_alone_is_finite",
    ],
    "masks in half precision; blind rows": [
        "test_core.py::test_an_all_padding_row_is_finite",
        "encoders/test_bert.py::test_half_precision",
        "heads/test_pooling.py::test_half_precision_is_finite_and_keeps_its_type",
    ],
    "the longest row": [
        "inference/test_encode.py::test_lengths_and_lower_case",
        "test_traps.py::test_modernbert_takes_8192_tokens",
    ],
    "Dense: dotted activation, missing bias": ["inference/test_sentence_modules.py::test_dense_activations"],
    "pickles": ["convert/test_unpickle.py::test_attack_is_refused_by_name_and_not_carried_out"],
    "pairs lose tokens of the longer text first": [
        "test_tokenizer.py::test_ids_equal_those_of_transformers",
        "inference/test_cross_encoder.py::test_truncation",
    ],
    "a batch gives what its rows give alone": [
        "test_core.py::test_batches_do_not_mix",
        "inference/test_encode.py::test_a_text_does_not_depend_on_its_company",
        "test_traps.py::test_logits_do_not_depend_on_the_batch",
    ],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_has_its_tests(trap):
    for place in TRAPS[trap]:
        file, _, name = place.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text("utf-8"), place


def saved(folder: Path, kind: str, **options) -> torch.nn.Module:
    """A tiny BERT task model with its tokenizer, as transformers saves them."""
    config = transformers.BertConfig(
        vocab_size=word_tokenizer().get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        **options,
    )
    model = redraw(getattr(transformers, f"BertFor{kind}")(config))
    model.save_pretrained(folder)
    save_word_tokenizer(folder)
    return model


def test_segments_of_a_pair_count(tmp_path):
    reference = saved(tmp_path, "SequenceClassification", num_labels=1)
    batch = Tokenizer.from_pretrained(tmp_path)(["the dog", "a bad movie"], ["is good", "again"])
    tensors = [torch.tensor(np.array(array).astype(np.int64)) for array in (batch.input_ids, batch.token_type_ids)]
    mask = torch.tensor(np.array(batch.attention_mask)).long()
    with torch.no_grad():
        wanted = reference(tensors[0], attention_mask=mask, token_type_ids=tensors[1]).logits.numpy()
    model = BertWithHead.from_pretrained(tmp_path)
    np.testing.assert_allclose(np.array(model(*batch)["logits"]), wanted, atol=1e-4)
    without = np.array(model(batch.input_ids, batch.attention_mask)["logits"])
    assert np.abs(without - wanted).max() > 1e-2


def test_training_keeps_the_decoder_tied(tmp_path):
    saved(tmp_path / "source", "MaskedLM")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "source")
    model = BertWithHead.from_pretrained(tmp_path / "source")
    assert "output.weight" not in dict(tree_flatten(model.head.parameters()))
    batch = tokenizer(["the dog is good", "a bad movie"])
    before = np.array(model.bert.encoder.embeddings.word.weight)
    gradients = nn.value_and_grad(model, lambda: model(*batch, labels=batch.input_ids)["loss"])
    optimizer = optim.AdamW(learning_rate=0.1)
    for _ in range(2):
        optimizer.update(model, gradients()[1])
    assert np.abs(np.array(model.bert.encoder.embeddings.word.weight) - before).max() > 0.1
    model.save_pretrained(tmp_path / "saved", tokenizer)
    (folder,) = export_checkpoint(tmp_path / "saved", tmp_path / "out")
    reference = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    table, decoder = reference.get_input_embeddings().weight, reference.get_output_embeddings().weight
    assert table.data_ptr() == decoder.data_ptr()
    mask = np.array(batch.attention_mask)
    with torch.no_grad():
        ids = torch.tensor(np.array(batch.input_ids).astype(np.int64))
        wanted = reference(ids, attention_mask=torch.tensor(mask).long()).logits.numpy()
    np.testing.assert_allclose(np.array(model(*batch)["logits"])[mask == 1], wanted[mask == 1], atol=1e-3)


def test_modernbert_takes_8192_tokens(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "modernbert"})
    save_word_tokenizer(tmp_path, max_length=int(1e30))
    assert Tokenizer.from_pretrained(tmp_path).max_length == 8192


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM"])
def test_logits_do_not_depend_on_the_batch(tmp_path, kind):
    saved(tmp_path, kind)
    tokenizer, model = Tokenizer.from_pretrained(tmp_path), BertWithHead.from_pretrained(tmp_path)
    texts = ["the", "the dog is good", "a bad movie today never again", "good dog"]
    name = "start_logits" if kind == "QuestionAnswering" else "logits"
    together = np.array(model(*tokenizer(texts))[name])
    for row, text in enumerate(texts):
        alone = np.array(model(*tokenizer([text]))[name])[0]
        shared = together[row] if kind == "SequenceClassification" else together[row][: len(alone)]
        np.testing.assert_allclose(shared, alone, atol=1e-5)
        assert mx.isfinite(mx.array(alone)).all().item()
