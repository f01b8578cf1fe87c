"""The same loop on a plain encoder with an objective of one's own: triplets, no head and no labels."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore
from mlx_bert.data.collate import PartsCollator
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.optimizers import parameter_groups
from mlx_bert.training.recompute import encoder_layers
from mlx_bert.training.trainer import Trainer

GOOD, BAD = ("good", "great", "happy", "nice"), ("bad", "awful", "sad", "angry")


class Triplets:
    """Cosine distance to the positive at least 0.5 smaller than to the negative."""

    needs_labels = False

    def forward(self, model, batch):
        pooled = [model(part["input_ids"], part.get("attention_mask")).mean_pooled for part in batch["parts"]]
        anchor, positive, negative = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in pooled)
        return {"positive": (anchor * positive).sum(-1), "negative": (anchor * negative).sum(-1)}

    def loss(self, model, outputs, batch):
        losses = mx.maximum(0, outputs["negative"] - outputs["positive"] + 0.5)
        return losses.mean(), mx.array(float(losses.size))

    def metrics(self, model, outputs, labels):
        assert labels is None
        return {"accuracy": float((outputs["positive"] > outputs["negative"]).mean())}


def triplets(tokenizer, count, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        same, other = (GOOD, BAD) if number % 2 else (BAD, GOOD)
        words = [*random.choice(same, 2), random.choice(other)]
        texts = [f"the {random.choice(['dog', 'cat', 'book'])} is {word}" for word in words]
        rows.append({"input_ids": [np.array(encoding.ids) for encoding in tokenizer.encode(texts)]})
    return rows


@pytest.mark.parametrize("recompute", [False, True])
def test_triplets_train_an_encoder(toy, tmp_path, recompute):
    model = BertCore.from_pretrained(toy.folder)
    args = TrainingArgs(output_dir=str(tmp_path / "run"), epochs=6, learning_rate=3e-3, batch_size=8, progress=False,
                        metric="accuracy", schedule="cosine_per_epoch", gradient_checkpointing=recompute)  # fmt: skip
    trainer = Trainer(model, args, triplets(toy.tokenizer, 48), triplets(toy.tokenizer, 24, 1), toy.tokenizer,
                      collate=PartsCollator(toy.tokenizer.pad_id), objective=Triplets())  # fmt: skip
    before = trainer.evaluate()["loss"]
    result = trainer.train()
    assert result.metrics["accuracy"] > 0.9
    assert result.metrics["loss"] < 0.5 * before
    loaded = BertCore.from_pretrained(tmp_path / "run/best_model")
    for (name, array), (_, own) in zip(
        tree_flatten(loaded.parameters()), tree_flatten(model.parameters()), strict=True
    ):
        np.testing.assert_array_equal(array, own, err_msg=name)
    assert (tmp_path / "run/best_model/tokenizer.json").is_file()


def test_without_an_encoder_beside_a_head_all_learns_at_one_rate(toy):
    model = BertCore.from_pretrained(toy.folder)
    groups = parameter_groups(model, TrainingArgs(learning_rate=1e-4))
    assert {(group.name, group.learning_rate) for group in groups} == {("model", 1e-4), ("model, no decay", 1e-4)}
    with pytest.raises(ValueError, match="expected a model with an encoder and a head with head_learning_rate"):
        parameter_groups(model, TrainingArgs(head_learning_rate=1e-4))
    assert encoder_layers(model) == model.encoder.layers
    with pytest.raises(ValueError, match="expected a model with encoder layers"):
        encoder_layers(model.encoder.embeddings)
