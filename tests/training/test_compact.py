"""Training a compact encoder from scratch: the objective against torch, sizes and settings."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_bert.data.triplets import Triplet
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.compact import TripletObjective, compact_trainer, triplet_examples

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def test_the_triplet_objective_equals_torch():
    objective = TripletObjective()
    rows = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    outputs = dict(zip(("anchor", "positive", "negative"), map(mx.array, rows), strict=True))
    loss, weight = objective.loss(None, outputs, {})
    distance = lambda a, b: 1 - torch.nn.functional.cosine_similarity(a, b)  # noqa: E731
    wanted = torch.nn.TripletMarginWithDistanceLoss(distance_function=distance, margin=0.2)(*map(torch.tensor, rows))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    assert weight.item() == 6
    near, far = (torch.nn.functional.cosine_similarity(torch.tensor(rows[0]), torch.tensor(row)) for row in rows[1:])
    found = objective.metrics(None, outputs, None)
    assert found["accuracy"] == pytest.approx((near > far).float().mean().item())
    assert found["positive"] == pytest.approx(near.mean().item(), abs=1e-6)
    assert found["negative"] == pytest.approx(far.mean().item(), abs=1e-6)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder):
    return Tokenizer.from_pretrained(tiny_bert_folder)


def test_triplets_become_three_rows_each(tokenizer):
    (example,) = triplet_examples([Triplet("the dog", "a dog is here", "the cat")], tokenizer, max_length=4)
    assert [len(row) for row in example["input_ids"]] == [4, 4, 4]
    assert example["input_ids"][0].tolist() == tokenizer(["the dog"]).input_ids[0].tolist()


def test_sizes_settings_and_seed(tokenizer, tmp_path):
    examples = triplet_examples(
        [Triplet("the dog", "a dog", "the cat"), Triplet("the cat", "a cat", "a dog")], tokenizer
    )
    given = {"output_dir": str(tmp_path / "run"), "epochs": 1, "progress": False}
    trainer = compact_trainer(tokenizer, examples, None, given, SMALL)
    assert (trainer.args.optimizer, trainer.args.patience, trainer.args.batch_size) == ("adam", 0, 32)
    assert compact_trainer(tokenizer, examples, examples, given, SMALL).args.patience == 3
    config = trainer.model.config
    assert (config.model_type, config.hidden_size, config.projection_size) == ("compact", 16, 32)
    assert (config.vocab_size, config.pad_token_id) == (tokenizer.fast.get_vocab_size(), tokenizer.pad_id)
    models = [compact_trainer(tokenizer, examples, None, {**given, "seed": seed}, SMALL).model for seed in (1, 1, 2)]
    weights = [model.encoder.pooler.dense.weight for model in models]
    assert mx.array_equal(weights[0], weights[1]).item()
    assert not mx.array_equal(weights[0], weights[2]).item()
    with pytest.raises(ValueError, match=r"expected sizes of hidden_size, .* but got depth, model_type"):
        compact_trainer(tokenizer, examples, sizes={"depth": 2, "model_type": "bert"})
