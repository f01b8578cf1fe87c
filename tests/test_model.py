"""BertWithHead: calling, freezing, saving."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from heads import HEADS, BaseKaggleHead, HeadConfig, HeadType, create_head
from mlx_bert import BertCore, BertOutput, BertWithHead, Tokenizer, create_bert_core, create_bert_with_head
from mlx_bert.checkpoint import read_json, write_json

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
IDS = mx.array([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = mx.array([[1, 1, 1, 1], [1, 1, 0, 0]])
LABELS = mx.array([0, 2])


def small_model(**options) -> BertWithHead:
    mx.random.seed(0)
    options = {"head_type": "multiclass_classification", "num_labels": 3, **options}
    return create_bert_with_head(bert_config=SMALL, **options).eval()


def parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def changed_by_a_step(model: BertWithHead) -> set[str]:
    """Names of the parameters that one optimiser step changes."""
    model.train()
    before = {name: np.array(array) for name, array in parameters(model).items()}
    loss = nn.value_and_grad(model, lambda ids, mask, labels: model(ids, mask, labels=labels)["loss"])
    _, gradients = loss(IDS, MASK, LABELS)
    optim.SGD(learning_rate=0.5).update(model, gradients)
    mx.eval(model.parameters())
    return {name for name, array in parameters(model).items() if not np.array_equal(before[name], np.array(array))}


def test_call_with_labels():
    model = small_model()
    output = model(IDS, MASK, labels=LABELS)
    assert output["loss"].shape == ()
    assert output["logits"].shape == (2, 3)
    assert output["predictions"].shape == (2,)
    assert np.allclose(output["probabilities"].sum(-1), 1, atol=1e-6)
    assert isinstance(output["bert_outputs"], BertOutput)
    assert output["head_outputs"]["logits"] is output["logits"]
    assert model(IDS, MASK)["loss"] is None
    wanted = nn.losses.cross_entropy(output["logits"], LABELS, reduction="mean")
    assert mx.allclose(output["loss"], wanted, atol=1e-6)
    assert mx.allclose(model.compute_loss(output, LABELS), wanted, atol=1e-6)
    metrics = model.compute_metrics(output, LABELS)
    assert metrics["accuracy"] == float(np.mean(np.array(output["predictions"]) == np.array(LABELS)))


def test_the_head_reads_the_encoder():
    model = small_model(pooling_type="mean")
    states = model.bert(IDS, MASK).last_hidden_state
    assert mx.allclose(model(IDS, MASK)["logits"], model.head(states, MASK)["logits"], atol=1e-6)


def test_hidden_states_and_attentions_on_request():
    output = small_model()(IDS, MASK, output_attentions=True, output_hidden_states=True)
    assert len(output["hidden_states"]) == 4
    assert len(output["attentions"]) == 3
    assert "attentions" not in small_model()(IDS, MASK)


def test_tuple_instead_of_dict():
    model = small_model()
    loss, logits = model(IDS, MASK, labels=LABELS, return_dict=False)
    assert mx.array_equal(logits, model(IDS, MASK)["logits"])
    assert loss.shape == ()
    assert model(IDS, MASK, return_dict=False)[0] is None


def test_components():
    model = small_model()
    assert isinstance(model.get_bert(), BertCore)
    assert isinstance(model.get_head(), BaseKaggleHead)


def test_names_of_classes_by_id_or_in_order():
    model = small_model()
    for names in ({"0": "a", "1": "b"}, {0: "a", 1: "b"}, ["a", "b"], ("a", "b")):
        model.set_labels(names)
        assert model.id2label == {0: "a", 1: "b"}


def test_head_and_encoder_must_fit():
    head = create_head(HeadConfig(head_type="multiclass_classification", input_size=64, output_size=3))
    with pytest.raises(ValueError, match=r"expected a head with input_size 32, .* but got 64"):
        BertWithHead(create_bert_core(**SMALL), head)


def test_factory_ways(tiny_bert_folder):
    assert type(create_bert_with_head(bert_config=SMALL).head) is HEADS["binary_classification"]
    config = HeadConfig(head_type="regression", input_size=32)
    assert type(create_bert_with_head(bert_config=SMALL, head_config=config).head) is HEADS["regression"]
    given = {"head_type": "multiclass_classification", "hidden_sizes": [7]}
    model = create_bert_with_head(bert_config=SMALL, head_config=given, num_labels=5, dropout_prob=0.3)
    assert model.head.config.output_size == 5
    assert model.head.config.hidden_sizes == [7]
    assert model.head.config.dropout_prob == 0.3
    model = create_bert_with_head(bert_name=tiny_bert_folder, head_type=HeadType.MULTICLASS_CLASSIFICATION)
    assert mx.array_equal(
        model.bert.encoder.embeddings.word.weight,
        BertCore.from_pretrained(tiny_bert_folder).encoder.embeddings.word.weight,
    )
    with pytest.raises(ValueError, match="no_such_head"):
        create_bert_with_head(bert_config=SMALL, head_type="no_such_head")
    with pytest.raises(ValueError, match="no_such_option"):
        create_bert_with_head(bert_config=SMALL, no_such_option=1)


def test_everything_trains_at_first():
    model = small_model(pooling_type="mean")
    unused = {"bert.encoder.pooler.dense.weight", "bert.encoder.pooler.dense.bias"}
    expected = {name for name in parameters(model) if name not in unused}
    # The key third of the fused bias has no gradient, its other parts do; position rows beyond the batch as well.
    assert changed_by_a_step(model) == expected


def test_freeze_bert():
    model = small_model()
    model.freeze_bert()
    assert changed_by_a_step(model) == {name for name in parameters(model) if name.startswith("head.")}
    model.unfreeze_bert()
    assert parameters(model).keys() == dict(tree_flatten(model.trainable_parameters())).keys()


def frozen_names(model: BertWithHead) -> set[str]:
    return parameters(model).keys() - dict(tree_flatten(model.trainable_parameters())).keys()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_freeze_the_bottom_layers(count):
    model = small_model()
    model.freeze_bert(num_layers=count)
    bottom = ("bert.encoder.embeddings.", *(f"bert.encoder.layers.{n}." for n in range(count)))
    wanted = {name for name in parameters(model) if name.startswith(bottom)}
    assert frozen_names(model) == wanted
    assert not changed_by_a_step(model) & wanted


def test_freezing_is_absolute():
    model = small_model()
    model.freeze_bert(num_layers=3)
    model.freeze_bert(num_layers=1)
    once = small_model()
    once.freeze_bert(num_layers=1)
    assert frozen_names(model) == frozen_names(once)
    model.freeze_bert(num_layers=0)
    assert frozen_names(model) == set()
    for wrong in (-1, 4, True):
        with pytest.raises(ValueError, match="expected num_layers from 0 to 3"):
            model.freeze_bert(wrong)


def test_freezing_in_the_constructor():
    assert frozen_names(small_model(freeze_bert_layers=2)) == frozen_names_after(2)
    everything = {name for name in parameters(small_model()) if name.startswith("bert.")}
    assert frozen_names(small_model(freeze_bert=True, freeze_bert_layers=2)) == everything


def frozen_names_after(count: int) -> set[str]:
    model = small_model()
    model.freeze_bert(count)
    return frozen_names(model)


def test_quantised_layers_stay_frozen():
    model = small_model()
    nn.quantize(model.bert.encoder, group_size=32, bits=8, class_predicate=lambda path, _: path.endswith("qkv"))
    model.unfreeze_bert()
    assert frozen_names(model) == {
        f"bert.encoder.layers.{n}.attention.qkv.{name}" for n in range(3) for name in ("weight", "scales", "biases")
    }


def test_saved_layout_and_bit_equal_reload(tmp_path, tiny_bert_folder):
    model = small_model(id2label={0: "bad", 1: "fair", 2: "good"}, dropout_prob=0.3, pooling_type="attention")
    changed_by_a_step(model)
    model.eval()
    model.save_pretrained(tmp_path / "saved")
    files = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert files == {
        "bert/config.json",
        "bert/model.safetensors",
        "bert/bert_core_config.json",
        "head/config.json",
        "head/model.safetensors",
        "model_metadata.json",
    }
    again = BertWithHead.from_pretrained(tmp_path / "saved")
    assert mx.array_equal(again(IDS, MASK)["logits"], model(IDS, MASK)["logits"])
    assert again.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert again.head.config == model.head.config
    assert read_json(tmp_path / "saved" / "model_metadata.json") == {
        "model_type": "BertWithHead",
        "bert_type": "BertCore",
        "head_type": "multiclass_classification",
        "head_class_name": "MulticlassClassificationHead",
        "head_config_type": "multiclass_classification",
        "id2label": {"0": "bad", "1": "fair", "2": "good"},
    }
    model.save_pretrained(tmp_path / "with-tokenizer", Tokenizer.from_pretrained(tiny_bert_folder))
    assert Tokenizer.from_pretrained(tmp_path / "with-tokenizer").pad_id == 0


def test_reloading_can_cast_and_freeze(tmp_path):
    small_model().save_pretrained(tmp_path)
    model = BertWithHead.from_pretrained(tmp_path, dtype="float16", freeze_bert_layers=1)
    kinds = {name.startswith("bert."): array.dtype for name, array in parameters(model).items()}
    assert kinds == {True: mx.float16, False: mx.float32}
    logits = model(IDS, MASK)["logits"]
    assert logits.dtype == mx.float32  # logits leave the head in float32, whatever the weights are
    assert mx.all(mx.isfinite(logits)).item()
    assert frozen_names(model) == frozen_names_after(1)


def test_an_unknown_head_asks_to_be_registered(tmp_path):
    small_model().save_pretrained(tmp_path)
    metadata = read_json(tmp_path / "model_metadata.json")
    write_json(tmp_path / "model_metadata.json", {**metadata, "head_type": "custom"})
    with pytest.raises(ValueError, match=r"got 'custom'.*register_head_class"):
        BertWithHead.from_pretrained(tmp_path)


def test_damaged_folders_are_refused(tmp_path):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    write_json(tmp_path / "head" / "config.json", {**config, "output_size": 4})
    with pytest.raises(ValueError, match="of shape"):
        BertWithHead.from_pretrained(tmp_path)
    (tmp_path / "head" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors"):
        BertWithHead.from_pretrained(tmp_path)


def test_a_base_checkpoint_has_no_head(tiny_bert_folder):
    with pytest.raises(ValueError, match="has no task head that is known here"):
        BertWithHead.from_pretrained(tiny_bert_folder)
