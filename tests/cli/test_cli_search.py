"""``mlx-bert search`` as a user runs it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mlx_bert.__main__ import main
from mlx_bert.cli.search import table
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.search import nearest

TEXTS = ["the movie was good", "the movie was bad", "a good day", "a bad day", "the day was good good good"]


def search(*arguments):
    return main(["search", *map(str, arguments)])


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "body": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


@pytest.fixture(scope="module")
def index(tiny_bert_folder, documents):
    folder = documents.with_name("index")
    assert (
        search("build", "--model", tiny_bert_folder, "--input", documents, "--column", "body", "--index", folder) == 0
    )
    return folder


def test_as_a_process(index, tiny_bert_folder):
    command = [sys.executable, "-m", "mlx_bert", "search", "query", "--index", str(index), "--json", "-k", "3"]
    result = subprocess.run(command, input=b"a good day\na bad movie\n", capture_output=True, check=True)
    lines = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert [line["query"] for line in lines] == ["a good day", "a bad movie"]
    encoder = SentenceEncoder.from_pretrained(tiny_bert_folder)
    places, scores = nearest(encoder.encode([line["query"] for line in lines]), encoder.encode(TEXTS), 3)
    assert [[hit["id"] for hit in line["results"]] for line in lines] == [[f"d{i}" for i in row] for row in places]
    assert [[hit["text"] for hit in line["results"]] for line in lines] == [[TEXTS[i] for i in row] for row in places]
    np.testing.assert_allclose([[hit["score"] for hit in line["results"]] for line in lines], scores, atol=1e-5)


def test_a_table(index, capsys):
    assert search("query", "--index", index, "a good day", "--top-k", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "id", "text"]
    assert lines[1].split() == ["1", "1.0000", "d2", "a", "good", "day"]
    assert len(lines) == 3
    assert search("query", "--index", index, "a good day", "a bad day", "--top-k", 1, "--exact") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[4]) == ("a good day", "a bad day")
    assert (lines[2].split()[2], lines[6].split()[2]) == ("d2", "d3")
    assert table([]).split() == ["rank", "score", "id", "text"]
    assert table([{"id": 1, "text": "a\n b " * 100, "score": -0.5}]).endswith("…")


def test_more_documents(tiny_bert_folder, documents, tmp_path, capsys):
    index = tmp_path / "index"
    (tmp_path / "more.txt").write_text("good good good good\nbad bad bad bad\n")
    arguments = ["--index", index, "--input", tmp_path / "more.txt"]
    build = ["build", "-m", tiny_bert_folder, "-x", index, "-i", documents, "--column", "body", "--dtype", "binary"]
    assert search(*build) == 0
    assert search("add", *arguments) == 0
    assert "2 documents added, 7 in" in capsys.readouterr().err
    assert search("query", "--index", index, "--input", tmp_path / "more.txt", "-k", 1, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["results"][0]["id"] for line in lines] == [5, 6]
    assert search("add", *arguments[:2], "-i", documents, "--column", "body") == 2
    assert "document id 'd0' comes twice" in capsys.readouterr().err
    assert search("info", "--index", index) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["documents"], shown["graph"], shown["metric"], shown["values"]) == ("7", "binary", "cosine", "32")
    assert search(*build) == 2
    assert "exists already. Choose another name, or give --overwrite" in capsys.readouterr().err
    assert search(*build, "--overwrite") == 0
    assert "5 documents in" in capsys.readouterr().err


def test_embeddings_from_the_other_verb(tiny_bert_folder, documents, tmp_path, capsys):
    given = ["-m", tiny_bert_folder, "-i", documents, "--column", "body"]
    assert main([*map(str, ["embed", *given, "--output", tmp_path / "docs.npy"])]) == 0
    assert search("build", *given, "--embeddings", tmp_path / "docs.npy", "--index", tmp_path / "index") == 0
    assert search("query", "--index", tmp_path / "index", "a bad day", "-k", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["id"] == "d3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "--index", "nowhere", "a"], "nowhere is no index. Make one: mlx-bert search build"),
        (["query", "--index", "INDEX", "a", "--input", "b.txt"], "texts or --input but got both"),
        (["query", "--index", "INDEX", "a", "--top-k", "0"], "top_k of at least 1 but got 0"),
        (["add", "--index", "INDEX", "--input", "nowhere.txt"], "nowhere.txt does not exist"),
        (["add", "--index", "INDEX", "--input", "DOCS", "--column", "body", "--embeddings", "DOCS"], "is no .npy file"),
        (["add", "--index", "INDEX", "--input", "DOCS"], "expected field 'text' in .*docs.jsonl line 1"),
    ],
)
def test_user_errors(index, documents, arguments, message, capsys):
    places = {"INDEX": index, "DOCS": documents}
    assert search(*[places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert "Traceback" not in error


def test_help_teaches(capsys):
    for arguments, shown in ((["--help"], "mlx-bert search build --model minilm"), (["build", "--help"], "--vectors")):
        with pytest.raises(SystemExit):
            search(*arguments)
        assert shown in capsys.readouterr().out
