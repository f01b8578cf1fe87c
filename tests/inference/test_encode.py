"""SentenceEncoder against sentence-transformers: the same folder, the same texts, the same numbers."""

import json
import threading

import mlx.core as mx
import numpy as np
import pytest
from pipeline_cases import RELATIVE
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from mlx_bert.core import BertCore
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.tokenizer import Tokenizer

MEAN = ("sentence_transformers.models.Pooling", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
TEXTS = ["abc", "", "query a b c d e f g", "hello doc world", "x" * 100, "a", "A B C"]


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def expected(reference, ragged_texts):
    return reference.encode(ragged_texts)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_minilm_equals_the_reference(encoder, expected, ragged_texts, batch_size):
    embeddings = encoder.encode(ragged_texts, batch_size=batch_size)
    assert len(ragged_texts) == 64
    assert embeddings.shape == (64, 384)
    assert embeddings.dtype == np.float32
    assert cosines(embeddings, expected).min() >= 0.999999
    np.testing.assert_allclose(embeddings, expected, atol=2e-6)


def test_a_text_does_not_depend_on_its_company(encoder, ragged_texts):
    together = encoder.encode(ragged_texts)
    alone = np.stack([encoder.encode(text) for text in ragged_texts[:5]])
    np.testing.assert_allclose(alone, together[:5], atol=1e-5)
    np.testing.assert_allclose(encoder.encode(ragged_texts[::-1])[::-1], together, atol=1e-5)


def test_settings_of_the_folder(encoder, reference):
    assert encoder.max_seq_length == reference.max_seq_length == 256
    assert encoder.get_embedding_dimension() == 384
    assert encoder.similarity_fn_name == "cosine"


def test_empty_inputs(encoder):
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode([], truncate_dim=5).shape == (0, 5)
    assert encoder.encode([], precision="ubinary").shape == (0, 48)
    assert encoder.encode([], output_value="token_embeddings") == []
    assert np.linalg.norm(encoder.encode("")) == pytest.approx(1, abs=1e-5)


def test_one_text_gives_one_vector(encoder):
    assert encoder.encode("a cat").shape == (384,)
    assert encoder.encode(["a cat"]).shape == (1, 384)
    native = encoder.encode("a cat", convert_to_numpy=False)
    assert isinstance(native, mx.array)
    assert native.shape == (384,)


def test_token_embeddings(encoder, reference):
    texts = ["a cat sat", "much longer than the other text here"]
    for ours, theirs in zip(
        encoder.encode(texts, output_value="token_embeddings"),
        reference.encode(texts, output_value="token_embeddings"),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=2e-5)


def test_everything(encoder, reference):
    (ours,), (theirs,) = (model.encode(["a cat sat"], output_value=None) for model in (encoder, reference))
    assert np.asarray(ours["input_ids"]).tolist() == theirs["input_ids"].tolist()
    np.testing.assert_allclose(np.asarray(ours["sentence_embedding"]), theirs["sentence_embedding"].numpy(), atol=2e-6)


def test_padding_to_the_left_changes_nothing_where_positions_are_relative(tiny_bert):
    mx.random.seed(5)
    core = BertCore(RELATIVE)
    right, left = (SentenceEncoder(core, Tokenizer.from_pretrained(tiny_bert)) for _ in range(2))
    left.tokenizer.padding_side = "left"
    for found, wanted in zip(*(model.encode(TEXTS, output_value=None) for model in (left, right)), strict=True):
        assert found["input_ids"].tolist() == wanted["input_ids"].tolist()
        for name in ("token_embeddings", "sentence_embedding"):
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("normalize", [False, True])
def test_truncate_before_normalize(build_folder, normalize):
    folder = build_folder([MEAN])
    options = {"truncate_dim": 5, "normalize_embeddings": normalize}
    ours = SentenceEncoder.from_pretrained(folder).encode(TEXTS, **options)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, **options)
    assert ours.shape == (len(TEXTS), 5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions(encoder, expected, ragged_texts, precision):
    ours = encoder.encode(ragged_texts[-20:], precision=precision)
    theirs = quantize_embeddings(expected[-20:], precision)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    steps = 1 if precision.endswith("int8") else 255  # a value on the border may fall to the other side
    assert (ours == theirs).mean() > 0.99
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= steps


def test_lengths_and_lower_case(build_folder):
    folder = build_folder([MEAN], lengths={"max_seq_length": 9, "do_lower_case": True})
    ours, theirs = SentenceEncoder.from_pretrained(folder), SentenceTransformer(str(folder), device="cpu")
    assert ours.max_seq_length == 9
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode("ABC"), ours.encode("abc"), atol=1e-6)


def test_longest_row_without_a_config(build_folder):
    assert SentenceEncoder.from_pretrained(build_folder([MEAN])).max_seq_length == 48  # the tokenizer's, not 64
    assert SentenceEncoder.from_pretrained(build_folder([MEAN]), max_seq_length=500).max_seq_length == 48


def test_no_modules_means_mean_pooling(tiny_bert):
    ours = SentenceEncoder.from_pretrained(tiny_bert).encode(TEXTS)
    np.testing.assert_allclose(ours, SentenceTransformer(str(tiny_bert), device="cpu").encode(TEXTS), atol=1e-5)


PROMPTS = {"prompts": {"query": "query: ", "passage": "doc: "}, "default_prompt_name": "passage"}


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("mode", ["cls", "mean", "weightedmean", "lasttoken", "max", "mean_sqrt_len_tokens"])
def test_prompts(build_folder, include_prompt, mode):
    pooling = {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": include_prompt}
    folder = build_folder([("sentence_transformers.models.Pooling", pooling)], model=PROMPTS)
    ours, theirs = SentenceEncoder.from_pretrained(folder), SentenceTransformer(str(folder), device="cpu")
    for call in (
        lambda model: model.encode(TEXTS),
        lambda model: model.encode(TEXTS, prompt_name="query"),
        lambda model: model.encode(TEXTS, prompt="a b "),
        lambda model: model.encode(TEXTS, prompt=""),
        lambda model: model.encode_query(TEXTS),
        lambda model: model.encode_document(TEXTS),
    ):
        np.testing.assert_allclose(call(ours), call(theirs), atol=2e-5)


def test_prompts_make_a_difference(build_folder):
    model = SentenceEncoder.from_pretrained(build_folder([MEAN], model=PROMPTS))
    assert np.abs(model.encode_query(TEXTS) - model.encode_document(TEXTS)).max() > 0.01
    np.testing.assert_allclose(
        model.encode_query(TEXTS), model.encode([f"query: {t}" for t in TEXTS], prompt=""), atol=1e-5
    )


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_name_is_read(build_folder, name):
    folder = build_folder([MEAN], model={"similarity_fn_name": name, "truncate_dim": 7})
    ours, theirs = SentenceEncoder.from_pretrained(folder), SentenceTransformer(str(folder), device="cpu")
    a, b = ours.encode(TEXTS), theirs.encode(TEXTS)
    assert a.shape == b.shape == (len(TEXTS), 7)
    np.testing.assert_allclose(np.asarray(ours.similarity(a, a)), theirs.similarity(b, b).numpy(), atol=2e-4)
    pairwise = np.asarray(ours.similarity_pairwise(a, a[::-1]))
    np.testing.assert_allclose(pairwise, theirs.similarity_pairwise(b, b[::-1].copy()).numpy(), atol=2e-4)


def test_saved_folder_loads_in_sentence_transformers(build_folder, tmp_path):
    import torch

    torch.manual_seed(1)
    dense = {
        "in_features": 32,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.activation.GELU",
    }
    linear = torch.nn.Module()
    linear.linear = torch.nn.Linear(32, 8, bias=False)
    folder = build_folder(
        [
            ("sentence_transformers.models.Pooling", {"embedding_dimension": 16, "pooling_mode": ["mean", "cls"]}),
            ("sentence_transformers.base.modules.Dense", dense, linear),
            ("sentence_transformers.models.Normalize", None),
        ],
        lengths={"max_seq_length": 20},
        model=PROMPTS,
    )
    ours = SentenceEncoder.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "saved")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), expected, atol=1e-6
    )
    again = SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert again.max_seq_length == 20
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))
    with pytest.raises(FileExistsError, match="exists already"):
        ours.save_pretrained(tmp_path / "saved")


def test_stream_equals_list(encoder, ragged_texts):
    texts = ragged_texts[-24:]
    parts = list(encoder.encode_stream(iter(texts), window=10))
    assert [len(part) for part in parts] == [10, 10, 4]
    np.testing.assert_allclose(np.concatenate(parts), encoder.encode(texts), atol=1e-5)


def test_threads_share_a_model(encoder, ragged_texts):
    texts = ragged_texts[-16:]
    expected = encoder.encode(texts)
    results = {}

    def work(name):
        results[name] = encoder.encode(texts)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 1, 2, 3]
    for result in results.values():
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_threads_leave_nothing_behind(tiny_bert):
    """MLX never frees a thread's streams: short-lived callers must not make any."""
    model = SentenceEncoder.from_pretrained(tiny_bert)
    model.encode(TEXTS)

    def streams_made():
        return int(str(mx.new_stream(mx.cpu)).rstrip(")").rpartition(" ")[2])

    before = streams_made()
    for _ in range(5):
        caller = threading.Thread(target=model.encode, args=(TEXTS,))
        caller.start()
        caller.join()
    assert streams_made() == before + 1


def test_half_precision_stays_close(minilm_source, encoder, ragged_texts):
    texts = ["a short text", *ragged_texts[2:4]]
    half = SentenceEncoder.from_pretrained(minilm_source, dtype="float16").encode(texts)
    assert half.dtype == np.float32
    assert cosines(half, encoder.encode(texts)).min() > 0.9999


def test_cpu_computes_in_float32(tiny_bert, tmp_path):
    SentenceEncoder.from_pretrained(tiny_bert, dtype="float16").save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float16"
    model = SentenceEncoder.from_pretrained(tmp_path / "half")
    assert model.core.encoder.embeddings.word.weight.dtype == mx.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"texts": ["a"], "precision": "int4"}, "precision to be one of .* but got 'int4'"),
        ({"texts": ["a"], "prompt_name": "nope"}, "prompt_name to be one of 'query', 'document' but got 'nope'"),
        ({"texts": ["a", None]}, "text 1 to be a string but got NoneType"),
        ({"texts": 3}, "a string or a sequence of strings but got int"),
        ({"texts": ["a"], "batch_size": 0}, "batch_size of at least 1 but got 0"),
        ({"texts": ["a"], "truncate_dim": 0}, "truncate_dim of at least 1 but got 0"),
        ({"texts": ["a"], "output_value": "words"}, "output_value to be one of"),
        ({"texts": "a", "precision": "int8"}, "ranges or calibration_embeddings"),
    ],
)
def test_errors(encoder, call, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(**call)


def test_folder_errors(build_folder, tmp_path):
    with pytest.raises(ValueError, match=r"asks for 'sentence_transformers\.models\.CNN', which is not supported"):
        SentenceEncoder.from_pretrained(build_folder([("sentence_transformers.models.CNN", {})]))
    folder = build_folder([MEAN])
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([{**modules[0], "type": "custom_st.Transformer"}]))
    with pytest.raises(ValueError, match=r"Transformer but got 'custom_st\.Transformer'"):
        SentenceEncoder.from_pretrained(folder)
    (folder / "modules.json").write_text(json.dumps([modules[0], {**modules[1], "path": "../1_Pooling"}]))
    with pytest.raises(ValueError, match="points outside its folder"):
        SentenceEncoder.from_pretrained(folder)
    (folder / "modules.json").write_text("{")
    with pytest.raises(ValueError, match="not a list of modules"):
        SentenceEncoder.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"unknown settings \['max_length'\]"):
        SentenceEncoder.from_pretrained(build_folder([MEAN]), max_length=5)
    with pytest.raises(ValueError, match="similarity"):
        SentenceEncoder.from_pretrained(build_folder([MEAN]), similarity_fn_name="jaccard")
    with pytest.raises(ValueError, match="max_seq_length to be a positive integer"):
        SentenceEncoder.from_pretrained(build_folder([MEAN]), max_seq_length=0)
