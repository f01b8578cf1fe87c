"""``mlx-bert embed`` as a user runs it, and its readers and writers."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_bert.__main__ import main
from mlx_bert.inference import precision
from mlx_bert.inference.embedding_files import quantize_parts, write_embeddings
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.quantization import quantize_embeddings
from mlx_bert.inference.text_files import Record

TEXTS = ["the movie was good", "", 'a bad day, "quoted"', "naïve 東京", "good good good"]


@pytest.fixture(scope="module")
def expected(tiny_bert_folder):
    return SentenceEncoder.from_pretrained(tiny_bert_folder).encode(TEXTS)


def embed(folder, *arguments):
    return main(["embed", "--model", str(folder), *map(str, arguments)])


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("options", "wanted"), [(["--dtype", "float32"], mx.float32), (["--dtype", "stored"], mx.float32), ([], mx.float16)]
)
def test_the_type_to_compute_in(tiny_bert_folder, expected, monkeypatch, capsys, options, wanted):
    """Without one float16, on what is taken for a GPU here."""
    loaded, load = [], SentenceEncoder.from_pretrained
    monkeypatch.setattr(precision, "on_gpu", lambda: True)
    monkeypatch.setattr(SentenceEncoder, "from_pretrained", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[0])
    assert embed(tiny_bert_folder, TEXTS[0], *options) == 0
    assert {array.dtype for _, array in tree_flatten(loaded[0].core.parameters())} == {wanted}
    (row,) = rows(capsys.readouterr().out)
    np.testing.assert_allclose(row["embedding"], expected[0], atol=1e-5 if wanted == mx.float32 else 5e-3)


def test_as_a_process(tiny_bert_folder, expected):
    command = [sys.executable, "-m", "mlx_bert", "embed", "--model", str(tiny_bert_folder)]
    result = subprocess.run(command, input="\n".join(TEXTS).encode(), capture_output=True, check=True)
    lines = rows(result.stdout.decode())
    assert [line["text"] for line in lines] == TEXTS
    np.testing.assert_allclose([line["embedding"] for line in lines], expected, atol=1e-5)
    result = subprocess.run([*command, "--input", "nowhere.txt"], capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.decode() == (
        "mlx-bert embed: error: [texts] nowhere.txt does not exist. "
        "Give a file of texts: .txt, .jsonl, .ndjson, .csv, .tsv, .parquet.\n"
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
    parts = [([Record("")] * len(part), part) for part in np.array_split(values, 7)]
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
        (["a", "--output", "a.docx"], "an output ending in .npy, .jsonl, .ndjson, .parquet but got a.docx"),
        (["a", "--resume"], "--resume goes on with a file: give --input and --output"),
        (["a", "--window", "0"], "expected a --window of at least 1 but got 0"),
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


# --- jobs: files to a file --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """3000 texts of 0 to 29 words, with ids."""
    words = ["movie", "good", "bad", "day", "was", "the"]
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    rows = ({"id": i, "text": " ".join(words[i * k % 6] for k in range(i % 30))} for i in range(3000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def whole(tiny_bert_folder, many):
    """What an undisturbed run writes."""
    path = many.with_name("whole.npy")
    assert embed(tiny_bert_folder, "--input", many, "--output", path, "--window", 40) == 0
    return path.read_bytes()


def command(folder, *arguments):
    return [sys.executable, "-m", "mlx_bert", "embed", "--model", str(folder), *map(str, arguments)]


def kill_when_started(process, folder, windows=3):
    """SIGKILL, all processes of its group, once so many windows are done."""
    until = time.monotonic() + 60
    while len(list(folder.glob("window-*.npy"))) < windows:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_job_is_resumed_with_the_same_bits(tiny_bert_folder, many, whole, tmp_path, capsys):
    output, partial = tmp_path / "out.npy", tmp_path / "out.npy.partial"
    arguments = ["--input", many, "--output", output, "--window", 40]
    process = subprocess.Popen(command(tiny_bert_folder, *arguments), start_new_session=True)
    kill_when_started(process, partial)
    assert not output.exists()
    done = len(list(partial.glob("window-*.npy")))
    assert 3 <= done < 75
    (partial / ".window-00000074.npy.half").write_bytes(b"half")
    assert embed(tiny_bert_folder, *arguments) == 2
    assert (
        f"out.npy.partial holds {40 * done:,} of 3,000 embeddings of a job that did not finish"
        in capsys.readouterr().err
    )
    assert embed(tiny_bert_folder, *arguments, "--resume", "--normalize") == 2
    assert "holds work of another job: normalize_embeddings was False and is True" in capsys.readouterr().err
    assert embed(tiny_bert_folder, *arguments, "--resume") == 0
    assert f"{40 * done:,} of 3,000 embeddings are done already" in capsys.readouterr().err
    assert output.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npy"]


def launched(folder, *arguments):
    """The command for two processes, on ports that are free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = Path(sys.executable).with_name("mlx.launch")
    return [str(launch), "-n", "2", "--starting-port", str(port - port % 2), "--", *command(folder, *arguments)]


def test_two_processes_share_a_job(tiny_bert_folder, many, whole, tmp_path):
    """Equal to one process's result, also after a kill of both."""
    output, partial = tmp_path / "out.npy", tmp_path / "out.npy.partial"
    arguments = ["--input", many, "--output", output, "--window", 40]
    run = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(launched(tiny_bert_folder, *arguments), start_new_session=True, **run)
    kill_when_started(process, partial)
    assert not output.exists()
    result = subprocess.run(launched(tiny_bert_folder, *arguments, "--resume"), check=True, text=True, **run)
    assert "3,000 embeddings in" in result.stderr
    assert output.read_bytes() == whole


def test_parquet_in_and_out(tiny_bert_folder, expected, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": list(range(7, 12)), "body": TEXTS}), tmp_path / "in.parquet")
    arguments = ["--input", tmp_path / "in.parquet", "--column", "body", "--window", 2]
    assert embed(tiny_bert_folder, *arguments, "--output", tmp_path / "out.parquet") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.types == [pa.int64(), pa.string(), pa.list_(pa.float32(), 32)]
    assert table["id"].to_pylist() == list(range(7, 12))
    assert table["text"].to_pylist() == TEXTS
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-5)
    assert embed(tiny_bert_folder, *arguments, "--precision", "int8", "--output", tmp_path / "int8.parquet") == 0
    stored = pq.read_table(tmp_path / "int8.parquet")
    assert stored.schema.field("embedding").type == pa.list_(pa.int8(), 32)
    whole = quantize_embeddings(np.array(table["embedding"].to_pylist(), np.float32), "int8")
    np.testing.assert_array_equal(np.array(stored["embedding"].to_pylist()), whole)
    assert embed(tiny_bert_folder, *arguments, "--output", tmp_path / "out.jsonl") == 0
    lines = rows((tmp_path / "out.jsonl").read_text())
    assert [(line["id"], line["text"]) for line in lines] == list(zip(range(7, 12), TEXTS, strict=True))


def test_several_files_are_one_input(tiny_bert_folder, expected, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:2]) + "\n")
    (tmp_path / "b.txt").write_text("\n".join(TEXTS[2:]) + "\n")
    for number, given in enumerate([["a.txt", "b.txt"], ["."], ["*.txt"]]):
        output = tmp_path / f"{number}.npy"
        assert embed(tiny_bert_folder, "--input", *(tmp_path / name for name in given), "--output", output) == 0
        np.testing.assert_allclose(np.load(output), expected, atol=1e-5)


def test_an_interruption_tells_how_to_go_on(tiny_bert_folder, many, tmp_path, capsys, monkeypatch):
    calls = []
    encode = SentenceEncoder.encode

    def interrupted(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args, **options)

    monkeypatch.setattr(SentenceEncoder, "encode", interrupted)
    arguments = ["--input", many, "--output", tmp_path / "out.npy", "--window", 100]
    assert embed(tiny_bert_folder, *arguments) == 130
    error = capsys.readouterr().err
    assert "go on with --resume" in error
    assert "Traceback" not in error
    assert sorted(entry.name for entry in (tmp_path / "out.npy.partial").iterdir()) == [
        "job.json",
        "window-00000000.npy",
        "window-00000001.npy",
    ]
    assert not (tmp_path / "out.npy").exists()
    assert embed(tiny_bert_folder, *arguments, "--resume") == 0
    assert len(calls) == 3 + 28
