"""The type that is computed in: which it is, what stays in float32 behind the encoder, and numbers that leave it."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten, tree_map
from pipeline_cases import LONG, TEXTS, save

from convert.conversion import convert_checkpoint
from heads import HeadConfig
from mlx_bert import factory
from mlx_bert.core import BertCore
from mlx_bert.inference import batching, precision
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.cross_encoder import CrossEncoder
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.pipelines import pipeline
from mlx_bert.inference.precision import compute_dtype
from mlx_bert.inference.predict import TextPredictor
from mlx_bert.joint import JointIntentNER
from mlx_bert.model import BertWithHead
from mlx_bert.mtl import SentenceTransformerMTL
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.few_shot import FewShotClassifier
from reference import save_word_tokenizer, word_tokenizer

GEMMA = {"model_type": "gemma3_text", "vocab_size": word_tokenizer().get_vocab_size(), "hidden_size": 32,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8,
         "intermediate_size": 40, "use_bidirectional_attention": True}  # fmt: skip
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.fixture
def gpu(monkeypatch):
    """The default device is taken for a GPU where the type to compute in is chosen."""
    monkeypatch.setattr(precision, "on_gpu", lambda: True)


def types(module):
    arrays = (array.dtype for _, array in tree_flatten(module.parameters()))
    return {dtype for dtype in arrays if mx.issubdtype(dtype, mx.floating)}


def tasks_beside(core, tokenizer, tasks, **options):
    model = SentenceTransformerMTL(core, 16, tasks=tasks, **options)
    model.tokenizer = tokenizer
    return model


# --- which type -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["float32", "float16", "bfloat16", mx.float16, "stored"])
@pytest.mark.parametrize("is_gpu", [False, True])
def test_what_is_asked_for_wins(tiny_bert, monkeypatch, asked, is_gpu):
    monkeypatch.setattr(precision, "on_gpu", lambda: is_gpu)
    wanted = {"stored": None, "float32": mx.float32, "bfloat16": mx.bfloat16}.get(asked, mx.float16)
    assert compute_dtype(asked, tiny_bert) == wanted


def test_what_is_taken_when_nothing_is_asked_for(tiny_bert, monkeypatch):
    assert not precision.on_gpu()  # tests run on a CPU
    assert compute_dtype(None, tiny_bert) == mx.float32
    monkeypatch.setattr(precision.mx, "default_device", lambda: mx.Device(mx.gpu))
    assert compute_dtype(None, tiny_bert) == mx.float16


@pytest.mark.parametrize("asked", ["int8", "half"])
def test_a_type_that_is_none(tiny_bert, asked):
    with pytest.raises(ValueError, match=f"dtype to be one of float32, float16, bfloat16, stored but got '{asked}'"):
        compute_dtype(asked, tiny_bert)


def test_a_folder_without_config_is_left_to_the_loader(tmp_path, gpu):
    assert compute_dtype(None, tmp_path) is None
    with pytest.raises(FileNotFoundError):
        TextPredictor.from_pretrained(tmp_path)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_every_loader_computes_in_float16_on_a_gpu(tiny_bert_folder, tmp_path, gpu, stored):
    """Encoders; what is behind them stays in float32. ``"stored"`` is what the file has."""
    core, tokenizer = BertCore.from_pretrained(tiny_bert_folder, stored), Tokenizer.from_pretrained(tiny_bert_folder)
    was = getattr(mx, stored)
    SentenceEncoder(core, tokenizer).save_pretrained(tmp_path / "sentences")
    classes = factory.create_bert_with_head(bert_name=tmp_path / "sentences", head_type="multiclass_classification")
    classes.save_pretrained(tmp_path / "classes", tokenizer)
    tasks = {"task_configs": {"a": {"type": "classification", "num_classes": 2}}}
    BertWithHead(core, HeadConfig("multi_task", 32, 2, extra=tasks)).save_pretrained(tmp_path / "tasks", tokenizer)
    JointIntentNER(core, tokenizer, ["x", "y"], ["O", "a"]).save_pretrained(tmp_path / "joint")
    tasks_beside(core, tokenizer, {"a": 2}).save_pretrained(tmp_path / "mtl")
    few = FewShotClassifier(SentenceEncoder(core, tokenizer), ["x", "y"], np.ones((2, 32)), np.zeros(2))
    few.save_pretrained(tmp_path / "few")

    loaders = {
        "sentences": lambda folder, dtype: SentenceEncoder.from_pretrained(folder, dtype).core,
        "classes": lambda folder, dtype: TextPredictor.from_pretrained(folder, dtype).model,
        "tasks": lambda folder, dtype: pipeline("multi-task", folder, dtype=dtype).model,
        "mtl": lambda folder, dtype: pipeline("multi-task", folder, dtype=dtype).model,
        "few": lambda folder, dtype: FewShotClassifier.from_pretrained(folder, dtype).encoder.core,
    }
    loaders |= {f"{task} {folder}": lambda path, dtype, task=task: pipeline(task, path, dtype=dtype).model
                for task, folder in (("sentence-similarity", "sentences"), ("feature-extraction", "sentences"),
                                     ("text-classification", "classes"))}  # fmt: skip
    loaders["cross classes"] = lambda folder, dtype: CrossEncoder.from_pretrained(folder, dtype).model
    for name, load in loaders.items():
        folder = tmp_path / name.split()[-1]
        for dtype, wanted in ((None, mx.float16), ("stored", was), ("bfloat16", mx.bfloat16)):
            model = load(folder, dtype)
            assert types(getattr(model, "bert", model)) == {wanted}, (name, dtype)
            if hasattr(model, "head") and dtype != "stored":
                assert types(model.head) == {mx.float32}, (name, dtype)
    assert compute_dtype(None, tmp_path / "joint") == mx.float16
    joint = JointIntentNER.from_pretrained(tmp_path / "joint", "float16")
    assert (types(joint.bert), types(joint.ner_head), types(joint.intent_head)) == (
        {mx.float16}, {mx.float32}, {mx.float32})  # fmt: skip


def test_a_cross_encoder_to_be_trained_has_its_weights_whole(tiny_bert, gpu):
    assert types(CrossEncoder.from_pretrained(tiny_bert, num_labels=1).model) == {mx.float32}
    assert types(CrossEncoder.from_pretrained(tiny_bert, "float16", num_labels=1).model.bert) == {mx.float16}


def test_quantised_weights_stay_as_they_are(tiny_bert_folder, tmp_path, gpu):
    folder = tmp_path / "packed"
    convert_checkpoint(tiny_bert_folder, folder, quantization={"bits": 8, "group_size": 32})
    assert compute_dtype(None, folder) is None
    packed = SentenceEncoder.from_pretrained(folder)
    assert types(packed.core) == {mx.float32}
    half = SentenceEncoder.from_pretrained(folder, "float16")
    assert types(half.core) == {mx.float16}
    for model in (packed, half):
        assert any(array.dtype == mx.uint32 for _, array in tree_flatten(model.core.parameters()))
    assert np.allclose(half.encode(TEXTS), packed.encode(TEXTS), atol=0.02)


def test_an_architecture_that_refuses_float16(tmp_path, gpu):
    mx.random.seed(0)
    BertCore(GEMMA).save_pretrained(tmp_path)
    save_word_tokenizer(tmp_path)
    model = SentenceEncoder.from_pretrained(tmp_path)
    assert types(model.core) == {mx.bfloat16}
    assert np.isfinite(model.encode(TEXTS)).all()
    with pytest.raises(ValueError, match="expected weights in float32 or bfloat16 but got float16"):
        SentenceEncoder.from_pretrained(tmp_path, "float16").encode(TEXTS)


# --- float32 behind the encoder ---------------------------------------------------------------------------------------


class Widened(nn.Module):
    """A 16-bit encoder whose states come in float32."""

    def __init__(self, half, whole):
        super().__init__()
        self.half = half
        rounded = tree_map(lambda array: array.astype(mx.float16).astype(mx.float32), whole.parameters())
        whole.update(rounded)
        self.embeddings = whole.embeddings  # of a tied language model
        self.pooler = getattr(whole, "pooler", None)

    def __call__(self, *inputs):
        output = self.half(*inputs)
        return output._replace(last_hidden_state=output.last_hidden_state.astype(mx.float32))


def both(load, core_of):
    """What is loaded in float16, and in float32 with the other's encoder: they differ in what is behind it alone."""
    half, whole = load("float16"), load("float32")
    core_of(whole).encoder = Widened(core_of(half).encoder, core_of(whole).encoder)
    return half, whole


def assert_equal_to_the_last_digits(ours, wanted):
    if isinstance(wanted, dict):
        ours, wanted = list(ours.values()), list(wanted.values())
    if isinstance(wanted, list | tuple):
        assert len(ours) == len(wanted)
        for pair in zip(ours, wanted, strict=True):
            assert_equal_to_the_last_digits(*pair)
    elif isinstance(wanted, float | np.floating | np.ndarray | mx.array):
        assert np.allclose(np.array(ours), np.array(wanted), rtol=5e-6, atol=1e-6)
    else:
        assert ours == wanted


@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_sentence_modules_in_float32(build_folder, output_value):
    torch.manual_seed(0)
    dense = torch.nn.ModuleDict({"linear": torch.nn.Linear(96, 24)})
    norm = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(24)})
    kinds = "sentence_transformers.models."
    modules = [
        (kinds + "Pooling", {"word_embedding_dimension": 16, "pooling_mode": MODES}),
        (kinds + "Dense", {"in_features": 96, "out_features": 24}, dense),
        (kinds + "LayerNorm", {"dimension": 24}, norm),
        (kinds + "Normalize", None),
    ]
    for some in (modules[:1], modules):
        folder = build_folder(some)
        half, whole = both(lambda dtype, f=folder: SentenceEncoder.from_pretrained(f, dtype), lambda e: e.core)
        found = (model.encode(["a b c", "query a " * 9, ""], output_value=output_value) for model in (half, whole))
        assert_equal_to_the_last_digits(*map(list, found))


def test_scores_of_pairs_in_float32(tiny_bert, tmp_path):
    import transformers

    shutil.copytree(tiny_bert, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(1)
    config = transformers.BertConfig.from_pretrained(tiny_bert, num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    half, whole = both(lambda dtype: CrossEncoder.from_pretrained(tmp_path, dtype), lambda e: e.model.bert)
    pairs = [("abc", "query a"), ("a b c d", "e f g " * 30), ("A", "B C")]
    for options in ({"raw_scores": True}, {"apply_softmax": True}):
        assert_equal_to_the_last_digits(half.predict(pairs, **options), whole.predict(pairs, **options))


QUESTION = {"question": "who walked?", "context": LONG}
CASES = {
    "text-classification": ("ForSequenceClassification", ["a", "b", "c"], TEXTS, {"top_k": None}),
    "zero-shot-classification": ("ForSequenceClassification", ["entailment", "neutral", "contradiction"], TEXTS[:2],
                                 {"candidate_labels": ["film", "dog"]}),
    "token-classification": ("ForTokenClassification", ["O", "B-X", "I-X"], TEXTS, {"ignore_labels": []}),
    "question-answering": ("ForQuestionAnswering", None, [QUESTION, {**QUESTION, "context": TEXTS[0]}], {"top_k": 3}),
    "multiple-choice": ("ForMultipleChoice", None, [{"question": LONG, "choices": TEXTS}], {}),
    "fill-mask": ("ForMaskedLM", None, ["the [MASK] dog", "a [MASK] in [MASK] " * 3], {}),
}  # fmt: skip


@pytest.mark.parametrize("task", CASES)
def test_heads_of_pipelines_in_float32(tmp_path, task):
    kind, labels, inputs, options = CASES[task]
    save(tmp_path, kind, labels)
    half, whole = both(lambda dtype: pipeline(task, tmp_path, dtype=dtype), lambda pipe: pipe.model.bert)
    assert_equal_to_the_last_digits(half(inputs, **options), whole(inputs, **options))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "attention", "weighted_mean"])
def test_own_heads_in_float32(tiny_bert_folder, tmp_path, pooling):
    mx.random.seed(3)
    model = factory.create_bert_with_head(bert_name=tiny_bert_folder, head_type="multiclass_classification",
                                          num_labels=3, initializer_range=0.5, pooling_type=pooling)  # fmt: skip
    model.save_pretrained(tmp_path, Tokenizer.from_pretrained(tiny_bert_folder))
    half, whole = both(lambda dtype: TextPredictor.from_pretrained(tmp_path, dtype), lambda each: each.model.bert)
    found, wanted = (each.predict(TEXTS, top_k=3) for each in (half, whole))
    assert_equal_to_the_last_digits([row["scores"] for row in found], [row["scores"] for row in wanted])


@pytest.mark.parametrize("sharing", ["hard", "soft"])
def test_tasks_beside_embeddings_in_float32(tiny_bert_folder, tmp_path, sharing):
    mx.random.seed(4)
    core, tokenizer = BertCore.from_pretrained(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
    tasks_beside(core, tokenizer, {"a": 2, "b": 3}, sharing=sharing).save_pretrained(tmp_path)
    half, whole = (SentenceTransformerMTL.from_pretrained(tmp_path, dtype) for dtype in ("float16", "float32"))
    for ours, theirs in zip(half.encoders(), whole.encoders(), strict=True):
        theirs.encoder = Widened(ours.encoder, theirs.encoder)
    assert_equal_to_the_last_digits(list(half.encode(TEXTS)), list(whole.encode(TEXTS)))
    for task in "ab":
        found, wanted = (model.predict(TEXTS)[task]["probs"] for model in (half, whole))
        assert_equal_to_the_last_digits(found, wanted)


@pytest.mark.parametrize("sentence", ["cls", "pooler"])
def test_intents_in_float32(tiny_bert_folder, tmp_path, sentence):
    mx.random.seed(5)
    core, tokenizer = BertCore.from_pretrained(tiny_bert_folder), Tokenizer.from_pretrained(tiny_bert_folder)
    JointIntentNER(core, tokenizer, ["x", "y", "z"], ["O", "a"], sentence=sentence).save_pretrained(tmp_path)
    half, whole = both(lambda dtype: JointIntentNER.from_pretrained(tmp_path, dtype).eval(), lambda model: model.bert)
    batch = tokenizer(TEXTS)
    for found, wanted in zip(half(*batch).values(), whole(*batch).values(), strict=True):
        assert_equal_to_the_last_digits(np.array(found), np.array(wanted))


# --- numbers that are not finite --------------------------------------------------------------------------------------

TOO_LARGE = r'expected finite numbers but .* NaN or infinity in float16, .* Load it with dtype="float32"'


def spoil(folder, target, factor, layer=None):
    """A copy of an encoder whose outer (or one layer's) normalisation has wrong weights."""
    shutil.copytree(folder, target)
    weights = mx.load(str(target / "model.safetensors"))
    layer = max(int(name.split("layer.")[1].split(".")[0]) for name in weights if "layer." in name) if (
        layer is None) else layer  # fmt: skip
    (name,) = (name for name in weights if name.endswith(f"layer.{layer}.output.LayerNorm.weight"))
    weights[name] = weights[name] * 0 + factor
    mx.save_safetensors(str(target / "model.safetensors"), weights, {"format": "mlx"})
    return target


@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings", None])
@pytest.mark.parametrize("layer", [0, 1])
def test_embeddings_that_leave_float16(tiny_bert, tmp_path, gpu, output_value, layer):
    """In the last layer they become infinite, before it NaN."""
    folder = spoil(tiny_bert, tmp_path / "model", 6e4, layer)
    with pytest.raises(ValueError, match=TOO_LARGE):
        SentenceEncoder.from_pretrained(folder).encode(["a b c", "d" * 30], output_value=output_value)
    found = SentenceEncoder.from_pretrained(folder, "float32").encode(["a b c", "d" * 30])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_broken_weights(tiny_bert, tmp_path, dtype):
    folder = spoil(tiny_bert, tmp_path / "model", float("nan"))
    with pytest.raises(ValueError, match=f"in {dtype}: its weights or the inputs are broken"):
        SentenceEncoder.from_pretrained(folder, dtype).encode("a b c")


@pytest.mark.parametrize("task", CASES)
def test_pipelines_that_leave_float16(tmp_path, gpu, task):
    kind, labels, inputs, options = CASES[task]
    folder = spoil(save(tmp_path / "whole", kind, labels), tmp_path / "model", 6e4, 0)
    with pytest.raises(ValueError, match=TOO_LARGE):
        pipeline(task, folder)(inputs, **options)
    with pytest.raises(ValueError, match=TOO_LARGE):
        list(pipeline(task, folder)(iter(inputs), **options))
    assert pipeline(task, folder, dtype="float32")(inputs, **options)


def test_other_engines_that_leave_float16(tiny_bert_folder, tmp_path, gpu):
    core = BertCore.from_pretrained(spoil(tiny_bert_folder, tmp_path / "spoilt", 6e4, 0))
    tokenizer = Tokenizer.from_pretrained(tiny_bert_folder)
    model = factory.create_bert_with_head(bert_name=tmp_path / "spoilt", head_type="binary_classification")
    model.save_pretrained(tmp_path / "classes", tokenizer)
    tasks_beside(core, tokenizer, {"a": 2}).save_pretrained(tmp_path / "mtl")
    JointIntentNER(core, tokenizer, ["x", "y"], ["O", "a"]).save_pretrained(tmp_path / "joint")
    calls = [
        lambda: TextPredictor.from_pretrained(tmp_path / "classes").predict(TEXTS),
        lambda: CrossEncoder.from_pretrained(tmp_path / "classes").predict([("a", "b")]),
        lambda: pipeline("feature-extraction", tmp_path / "spoilt")(TEXTS),
        lambda: pipeline("multi-task", tmp_path / "mtl")(TEXTS),
        lambda: SentenceTransformerMTL.from_pretrained(tmp_path / "mtl", "float16").encode(TEXTS),
        lambda: JointIntentNER.from_pretrained(tmp_path / "joint", "float16").predict(TEXTS),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=TOO_LARGE):
            call()


class BrokenPadding(nn.Module):
    """An encoder that leaves NaN at padded places."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def __call__(self, input_ids, attention_mask=None, *others):
        output = self.encoder(input_ids, attention_mask, *others)
        states = output.last_hidden_state
        if attention_mask is not None:
            states = mx.where(attention_mask[..., None], states, mx.nan)
        return output._replace(last_hidden_state=states)


def test_padding_may_hold_anything(tiny_bert):
    texts = ["a", "b " * 20]
    for load, core, run in (
        (SentenceEncoder.from_pretrained, "core", lambda model: model.encode(texts)),
        (SentenceEncoder.from_pretrained, "core", lambda model: model.encode(texts, output_value="token_embeddings")),
        (lambda folder: pipeline("feature-extraction", folder), "model", lambda pipe: pipe(texts)),
    ):
        model = load(tiny_bert)
        before = run(model)
        getattr(model, core).encoder = BrokenPadding(getattr(model, core).encoder)
        for found, wanted in zip(run(model), before, strict=True):
            assert np.array_equal(np.array(found), np.array(wanted))


def test_the_check_is_evaluated_with_the_batch(encoder, monkeypatch):
    """Not one evaluation more; whole numbers have none to fail."""
    seen, start = [], mx.async_eval
    monkeypatch.setattr(batching.mx, "async_eval", lambda arrays: (seen.extend(arrays), start(arrays)))
    forward = lambda batch, _: {"ids": batch.input_ids, "x": [batch.input_ids / 2, batch.input_ids * 0.1]}  # noqa: E731
    assert len(list(run_batches(["one two"], encoder.tokenizer, forward))) == 1
    assert [[array.dtype for array in arrays] for arrays in seen] == [[mx.int32, mx.float32, mx.float32, mx.bool_]]
    (last,) = (arrays[-1] for arrays in seen)
    assert last.shape == ()
    for bad in (mx.nan, mx.inf):
        spoilt = lambda batch, _, bad=bad: {"ids": batch.input_ids, "x": [batch.input_ids / 2, mx.array([1, bad])]}  # noqa: E731
        with pytest.raises(ValueError, match=r'NaN or infinity in its type\. In float16, load it with dtype="float32"'):
            list(run_batches(["one two"], encoder.tokenizer, spoilt))
    assert list(run_batches(["a"], encoder.tokenizer, lambda batch, _: batch.input_ids))


def test_a_saved_type_is_what_was_computed_in(tiny_bert, tmp_path, gpu):
    SentenceEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float16"
    SentenceEncoder.from_pretrained(tiny_bert, "stored").save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole/config.json").read_text())["dtype"] == "float32"
