"""Continued pre-training: loss and gradients as transformers', what it saves, and exact resumption."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten

from mlx_bert.core import BertCore
from mlx_bert.data.masking import Masking, MaskingCollator, text_rows
from mlx_bert.inference.pipelines import pipeline
from mlx_bert.task_model import TaskModel
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.feed import default_collator
from mlx_bert.training.masked_lm import MaskedLMObjective, MaskedLMTrainer, load_masked_lm
from reference import redraw, save_word_tokenizer, word_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "max_position_embeddings": 66, "vocab_size": word_tokenizer().get_vocab_size()}  # fmt: skip
DROPOUTS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "bert": (transformers.BertConfig(**SIZES, **DROPOUTS), "bert.embeddings.word_embeddings.weight"),
    "roberta": (transformers.RobertaConfig(**SIZES, **DROPOUTS), "roberta.embeddings.word_embeddings.weight"),
    "modernbert": (transformers.ModernBertConfig(**SIZES, pad_token_id=0), "model.embeddings.tok_embeddings.weight"),
    "bert untied": (
        transformers.BertConfig(**SIZES, **DROPOUTS, tie_word_embeddings=False),
        "bert.embeddings.word_embeddings.weight",
    ),
}
TEXTS = [
    "the dog sleeps and the cat walks",
    "it is never too good today",
    "a happy bird, a small tree!",
    "rain",
    "we love the red sun and the blue river today",
]


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, tmp_path_factory):
    """A masked language model as transformers saves it, and the name of its word embeddings."""
    config, name = MODELS[request.param]
    folder = tmp_path_factory.mktemp("mlm")
    model = transformers.AutoModelForMaskedLM.from_config(config)
    redraw(model, std=0.2).save_pretrained(folder)
    save_word_tokenizer(folder)
    return folder, name


def test_loss_and_gradient_are_those_of_transformers(checkpoint):
    folder, name = checkpoint
    model, tokenizer = load_masked_lm(folder, "float32"), Tokenizer.from_pretrained(folder)
    collate = MaskingCollator(default_collator(model, tokenizer), tokenizer, Masking(probability=0.3), multiple=8)
    batch = collate(text_rows(TEXTS, tokenizer))
    objective = MaskedLMObjective()

    def loss_of(parameters):
        model.update(parameters)
        return objective.loss(model, objective.forward(model, batch), batch)[0]

    value, gradients = mx.value_and_grad(loss_of)(model.trainable_parameters())
    ids, labels = np.array(batch["input_ids"]), np.full(batch["input_ids"].shape, -100)
    for row in range(len(ids)):
        real = np.array(batch["labels"])[row] != -100
        labels[row, np.array(batch["positions"])[row, real]] = np.array(batch["labels"])[row, real]
    reference = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    mask = torch.tensor(np.array(batch["attention_mask"]).astype(np.int64))
    wanted = reference(torch.tensor(ids), attention_mask=mask, labels=torch.tensor(labels)).loss
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    expected = dict(reference.named_parameters())[name].grad.numpy()
    embeddings = model.bert.encoder.embeddings
    path = "word" if "word" in embeddings else "tokens"
    ours = np.array(gradients["bert"]["encoder"]["embeddings"][path]["weight"])
    np.testing.assert_allclose(ours, expected, atol=2e-4 * np.abs(expected).max())
    counted = np.array(batch["labels"]) != -100
    outputs = objective.forward(model, batch)
    assert np.array(outputs["token_losses"])[~counted].max() == 0
    found = objective.metrics(model, outputs, batch["labels"])
    assert found["perplexity"] == pytest.approx(math.exp(wanted.item()), rel=1e-3)


def args_of(folder, **options):
    return TrainingArgs(**{"output_dir": str(folder), "epochs": 2, "learning_rate": 3e-3, "batch_size": 4,
                           "progress": False, "seed": 3, **options})  # fmt: skip


def test_training_lowers_the_perplexity_and_saves_a_checkpoint_of_the_class(checkpoint, tmp_path):
    folder, _ = checkpoint
    model, tokenizer = load_masked_lm(folder), Tokenizer.from_pretrained(folder)
    trainer = MaskedLMTrainer(model, tokenizer, args_of(tmp_path, learning_rate=1e-2), TEXTS * 4, TEXTS)
    before = trainer.evaluate()
    assert trainer.evaluate() == trainer.evaluate(TEXTS) == before  # the texts are masked alike
    result = trainer.train()
    assert set(result.metrics) == {"loss", "perplexity", "accuracy"}
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]), rel=1e-4)
    assert result.metrics["perplexity"] < 0.7 * before["perplexity"]
    best = tmp_path / "best_model"
    assert json.loads((best / "config.json").read_text())["architectures"][0].endswith("ForMaskedLM")
    filled = pipeline("fill-mask", best)("the [MASK] sleeps")
    reference = transformers.AutoModelForMaskedLM.from_pretrained(best).eval()
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(["the [MASK] sleeps"])[0].ids])
        logits = reference(ids).logits[0, 2]
    assert [hit["token"] for hit in filled] == logits.topk(5).indices.tolist()
    np.testing.assert_allclose([hit["score"] for hit in filled], logits.softmax(-1).topk(5).values, rtol=1e-3)
    core = BertCore.from_pretrained(best)
    batch = tokenizer(TEXTS)
    with torch.no_grad():
        encoder = transformers.AutoModel.from_pretrained(best).eval()
        mask = torch.tensor(np.array(batch.attention_mask))
        states = encoder(torch.tensor(np.array(batch.input_ids)), mask).last_hidden_state.numpy()
    real = np.array(batch.attention_mask)
    np.testing.assert_allclose(np.array(core(*batch).last_hidden_state)[real], states[real], atol=1e-4)
    assert TaskModel.new(core, "sequence_classification", 2)(*batch)["logits"].shape == (5, 2)


def test_an_encoder_gets_a_new_tied_head(tiny_bert_folder, tmp_path):
    mx.random.seed(0)
    model, tokenizer = load_masked_lm(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
    assert model.head.needs_embeddings
    trainer = MaskedLMTrainer(model, tokenizer, args_of(tmp_path), TEXTS * 6, TEXTS, packed=True)
    before = trainer.evaluate()["perplexity"]
    assert trainer.train().metrics["perplexity"] < 0.95 * before
    again = load_masked_lm(tmp_path / "best_model")
    for name, array in tree_flatten(again.parameters()):
        np.testing.assert_array_equal(array, dict(tree_flatten(model.parameters()))[name], err_msg=name)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_equals_the_uninterrupted_one(tiny_bert_folder, tmp_path, stop):
    def run(name, callbacks=(), resume=False):
        mx.random.seed(0)
        model, tokenizer = load_masked_lm(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
        args = args_of(tmp_path / name, save_every="2")
        trainer = MaskedLMTrainer(model, tokenizer, args, TEXTS * 2, callbacks=callbacks)
        try:
            trainer.train(resume)
        except KeyboardInterrupt:
            return None
        return trainer.state.history["steps"], {k: np.array(v) for k, v in tree_flatten(model.parameters())}

    steps, whole = run("whole")
    assert run("cut", [StopAt(stop)]) is None
    resumed_steps, resumed = run("cut", resume=True)
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    assert resumed_steps[-1]["loss"] == pytest.approx(steps[-1]["loss"])


def test_a_run_with_another_mask_is_not_resumed(tiny_bert_folder, tmp_path):
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)

    def trainer(masking):
        return MaskedLMTrainer(load_masked_lm(tiny_bert_folder), tokenizer, args_of(tmp_path, epochs=1), TEXTS,
                               masking=masking)  # fmt: skip

    trainer(Masking()).train()
    with pytest.raises(ValueError, match="collator"):
        trainer(Masking(probability=0.3)).train(resume=True)
