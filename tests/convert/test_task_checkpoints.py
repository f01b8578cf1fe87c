"""Task checkpoints as transformers saves them, through ``BertWithHead.from_pretrained``: the logits are equal."""

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from mlx_bert.model import BertWithHead
from reference import redraw

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
FAMILIES = {
    "Albert": {"intermediate_size": 24, "embedding_size": 12},
    "Bert": {"intermediate_size": 24},
    "DebertaV2": {
        "intermediate_size": 24,
        "relative_attention": True,
        "position_buckets": 4,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "DistilBert": {"hidden_dim": 24},
    "Electra": {"intermediate_size": 24, "embedding_size": 12},
    "ModernBert": {"intermediate_size": 24, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "MPNet": {"intermediate_size": 24},
    "Roberta": {"intermediate_size": 24},
    "EuroBert": {"intermediate_size": 24, "num_key_value_heads": 1, "pad_token_id": 0},
    "Gemma3Text": {
        "intermediate_size": 24,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "use_bidirectional_attention": True,
        "pad_token_id": 0,
    },
    "Gte": {"intermediate_size": 24, "pad_token_id": 0},
    "JinaEmbeddingsV3": {"intermediate_size": 24},
    "NomicBert": {"intermediate_size": 24},
}
TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")


def saved(family: str, task: str, folder, **options) -> torch.nn.Module:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **options})
    if task == "QuestionAnswering":
        config.num_labels = 2
    model = redraw(getattr(transformers, f"{family}For{task}")(config))
    model.save_pretrained(folder)
    return model


def inputs(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask with padding on the right."""
    ids, mask = np.random.default_rng(3).integers(5, 60, shape), np.ones(shape, dtype=np.int64)
    mask[1, ..., 6:] = 0
    ids[mask == 0] = 0
    return torch.tensor(ids), torch.tensor(mask)


CASES = [(family, task) for family in FAMILIES for task in TASKS if hasattr(transformers, f"{family}For{task}")]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_logits_equal_transformers(family, task, tmp_path):
    reference = saved(family, task, tmp_path)
    ids, mask = inputs((3, 2, 9) if task == "MultipleChoice" else (3, 9))
    # RoBERTa and MPNet count positions from there.
    ids[mask == 0] = reference.config.pad_token_id
    with torch.no_grad():
        wanted = reference(input_ids=ids, attention_mask=mask)
    model = BertWithHead.from_pretrained(tmp_path)
    got = model(mx.array(ids.numpy()), mx.array(mask.numpy()))["head_outputs"]
    for name in ("start_logits", "end_logits") if task == "QuestionAnswering" else ("logits",):
        ours, theirs = np.array(got[name]), getattr(wanted, name).numpy()
        assert ours.shape == theirs.shape
        if task in ("MaskedLM", "TokenClassification", "QuestionAnswering"):
            ours, theirs = ours[mask.bool().numpy()], theirs[mask.bool().numpy()]
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("family", "task"), [("Albert", "PreTraining"), ("Bert", "PreTraining")])
def test_pre_training_checkpoints_give_their_masked_language_model(family, task, tmp_path):
    reference = saved(family, task, tmp_path)
    ids, mask = inputs((2, 9))
    with torch.no_grad():
        wanted = reference(input_ids=ids, attention_mask=mask).prediction_logits.numpy()
    got = np.array(BertWithHead.from_pretrained(tmp_path)(mx.array(ids.numpy()), mx.array(mask.numpy()))["logits"])
    np.testing.assert_allclose(got[mask.bool().numpy()], wanted[mask.bool().numpy()], atol=1e-4)


def test_a_discriminator_is_refused_as_a_task_model(tmp_path):
    saved("Electra", "PreTraining", tmp_path)
    with pytest.raises(ValueError, match="has no task head that is known here"):
        BertWithHead.from_pretrained(tmp_path)


def test_a_tied_decoder_follows_the_word_embeddings(tmp_path):
    saved("Bert", "MaskedLM", tmp_path)
    model = BertWithHead.from_pretrained(tmp_path)
    ids = mx.array([[7, 8, 9]])
    before = model(ids)["logits"]
    table = model.bert.encoder.embeddings.word
    table.weight = mx.concatenate([table.weight[:50], table.weight[50:] + 1])  # words that the text does not have
    after = model(ids)["logits"]
    assert mx.allclose(after[..., :50], before[..., :50], atol=1e-5).item()
    assert not mx.allclose(after[..., 50:], before[..., 50:], atol=1e-2).item()
