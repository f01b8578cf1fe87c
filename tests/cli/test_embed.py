"""``mlx-bert embed`` as a user runs it, and its readers and writers."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from mlx_bert.__main__ import main
from mlx_bert.inference.embedding_files import quantize_parts, write_embeddings
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.quantization import quantize_embeddings

TEXTS = ["the movie was good", "", 'a bad day, "quoted"', "naïve 東京", "good good good"]


@pytest.fixture(scope="module")
def expected(tiny_bert_folder):
    return SentenceEncoder.from_pretrained(tiny_bert_folder).encode(TEXTS)


def embed(folder, *arguments):
    return main(["embed", "--model", str(folder), *map(str, arguments)])


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def test_as_a_process(tiny_bert_folder, expected):
    command = [sys.executable, "-m", "mlx_bert", "embed", "--model", str(tiny_bert_folder)]
    result = subprocess.run(command, input="\n".join(TEXTS).encode(), capture_output=True, check=True)
    lines = rows(result.stdout.decode())
    assert [line["text"] for line in lines] == TEXTS
    np.testing.assert_allclose([line["embedding"] for line in lines], expected, atol=1e-5)
    result = subprocess.run([*command, "--input", "nowhere.txt"], capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.decode() == (
        "mlx-bert embed: error: [embed] nowhere.txt does not exist. "
        "Give a file of texts: .txt, .jsonl, .ndjson, .csv, .tsv.\n"
    )


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "--output docs.npy" in shown


def test_arguments_to_stdout(tiny_bert_folder, expected, capsys):
    assert embed(tiny_bert_folder, *[text for text in TEXTS if text]) == 0
    lines = rows(capsys.readouterr().out)
    np.testing.assert_allclose([line["embedding"] for line in lines], np.delete(expected, 1, axis=0), atol=1e-5)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv"])
def test_files(tiny_bert_folder, expected, tmp_path, kind):
    path = tmp_path / f"texts.{kind}"
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == "txt":
            file.write("\r\n".join(TEXTS))
        elif kind == "jsonl":
            file.writelines(json.dumps({"id": 1, "body": text}) + "\n\n" for text in TEXTS)
        else:
            writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            writer.writerows([["id", "body"], *([str(i), text] for i, text in enumerate(TEXTS))])
    assert embed(tiny_bert_folder, "--input", path, "--column", "body", "--output", tmp_path / "out.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_options_reach_the_encoder(tiny_bert_folder, tmp_path):
    options = ["--prompt", "good ", "--normalize", "--truncate-dim", 5, "--max-length", 4, "--batch-size", 1]
    assert embed(tiny_bert_folder, "a movie day", *options, "--output", tmp_path / "out.npy") == 0
    model = SentenceEncoder.from_pretrained(tiny_bert_folder, max_seq_length=4)
    expected = model.encode(["a movie day"], prompt="good ", normalize_embeddings=True, truncate_dim=5)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precision_in_a_stream_equals_the_whole(tmp_path, precision):
    values = np.random.default_rng(0).normal(size=(110, 16)).astype(np.float32)
    parts = [([""] * len(part), part) for part in np.array_split(values, 7)]
    assert write_embeddings(quantize_parts(parts, precision), tmp_path / "out.npy") == 110
    stored = np.load(tmp_path / "out.npy", mmap_mode="r")
    whole = quantize_embeddings(values, precision)
    assert stored.dtype == whole.dtype
    np.testing.assert_array_equal(stored, whole)


def test_no_texts_make_an_empty_file(tiny_bert_folder, tmp_path):
    (tmp_path / "none.txt").write_text("")
    assert embed(tiny_bert_folder, "--input", tmp_path / "none.txt", "--output", tmp_path / "out.npy") == 0
    assert len(np.load(tmp_path / "out.npy")) == 0


def test_similarity_table(tiny_bert_folder, expected, capsys):
    assert embed(tiny_bert_folder, "--similarity", TEXTS[0], TEXTS[4]) == 0
    lines = capsys.readouterr().out.splitlines()
    a, b = expected[0], expected[4]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert lines[0].split() == ["cosine", "[1]", "[2]"]
    assert lines[1].split()[:3] == ["[1]", "1.000", f"{cosine:.3f}"]
    assert lines[2].endswith(TEXTS[4])


BAD_FILES = {
    "broken.jsonl": ('{"text": "a"}\n{"text"', "broken.jsonl line 2 is not valid JSON"),
    "other.jsonl": ('{"body": "a"}', "expected field 'text' in .*other.jsonl line 1, which has 'body'"),
    "number.jsonl": ('{"text": 3}', "expected text in field 'text' of .*number.jsonl line 1 but got int"),
    "list.jsonl": ("[1]", "line 1, which is no JSON object"),
    "other.csv": ("id,body\n1,a\n", "other.csv has no column 'text'. It has 'id', 'body'"),
    "ragged.csv": ("id,text\n1,a\n2\n", "ragged.csv line 3 has 1 fields where the header has 2"),
    "quote.csv": ('text\n"a\n', "quote.csv line 2 is not valid CSV"),
    "texts.docx": ("a", "expected a file ending in .txt, .jsonl"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tiny_bert_folder, tmp_path, name, capsys):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_text(content)
    assert embed(tiny_bert_folder, "--input", tmp_path / name, "--output", tmp_path / "out.npy") == 2
    error = capsys.readouterr().err
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert not (tmp_path / "out.npy").exists()


def test_not_utf8(tiny_bert_folder, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin1"))
    assert embed(tiny_bert_folder, "--input", tmp_path / "latin.txt") == 2
    assert "latin.txt is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--input", "b.txt"], "texts or --input but got both"),
        (["a", "--output", "a.parquet"], "an output ending in .npy, .jsonl"),
        (["a", "--output", "nowhere/a.npy"], "the folder nowhere does not exist"),
        (["a", "--similarity"], "at least 2 texts for --similarity but got 1"),
        (["a", "b", "--similarity", "--precision", "int8"], "leave out --output and --precision"),
        (["a", "--precision", "int8"], "expected ranges or calibration_embeddings"),
        (["a", "--prompt-name", "nope"], "prompt_name to be one of 'query', 'document' but got 'nope'"),
    ],
)
def test_user_errors(tiny_bert_folder, arguments, message, capsys):
    assert embed(tiny_bert_folder, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_existing_output_is_kept(tiny_bert_folder, tmp_path, capsys):
    (tmp_path / "out.npy").write_text("mine")
    assert embed(tiny_bert_folder, "a", "--output", tmp_path / "out.npy") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out.npy").read_text() == "mine"
