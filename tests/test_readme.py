"""Every example of the README runs, in order, as a reader would type it; and what it says about the project is so.

The checkpoints come from a Hub cache that the test fills itself, so the hub ids stand as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from reference import WORDS, redraw, save_word_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SENTENCES, TASK = "sentence-transformers/all-MiniLM-L6-v2", "textattack/bert-base-uncased-SST-2"


class Block(NamedTuple):
    title: str
    language: str
    code: str


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, each with the heading above it."""
    found, title = [], ""
    for heading, language, code in re.findall(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        title = heading or title
        if code:
            found.append(Block(title, language, code))
    return found


BLOCKS = blocks_of(README)
RUN = [block for block in BLOCKS if block.language in ("python", "bash")]


def add_to_hub_cache(cache: Path, repo: str, folder: Path) -> None:
    """Lay a folder out as huggingface_hub caches a repository."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))


def write_sentence_transformer(folder: Path) -> None:
    """A tiny BERT with mean pooling and normalisation, as sentence-transformers lays it out."""
    import transformers

    redraw(transformers.BertModel(tiny_config(transformers))).save_pretrained(folder)
    save_word_tokenizer(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def write_task_model(folder: Path) -> None:
    import transformers

    redraw(transformers.BertForSequenceClassification(tiny_config(transformers))).save_pretrained(folder)
    save_word_tokenizer(folder)


def tiny_config(transformers: object) -> object:
    return transformers.BertConfig(  # type: ignore[attr-defined]
        vocab_size=len(WORDS) + 128,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples, a filled Hub cache, and a ``bin`` with the commands that a reader would have."""
    place = tmp_path_factory.mktemp("readme")
    for file in sorted((ROOT / "examples" / "data").glob("*/*.jsonl")):  # a part of the data is enough to run on
        copy = place / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:40]), "utf-8")
    shutil.copy(ROOT / "examples" / "data" / "sentiment.csv", place / "examples" / "data")
    for repo, write in ((SENTENCES, write_sentence_transformer), (TASK, write_task_model)):
        folder = tmp_path_factory.mktemp("checkpoint")
        write(folder)
        add_to_hub_cache(place / "hub", repo, folder)
    (place / "bin").mkdir()
    for name, module in (("python", ""), ("mlx-bert", "-m mlx_bert ")):
        command = place / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {module}"$@"\n')
        command.chmod(0o755)
    return place


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Block], str]:
    """Run a block in the folder, Python in this process, which starts sooner than others; gives what it prints."""
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setenv("MLX_BERT_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)

    def run(block: Block) -> str:
        if block.language == "python":
            exec(compile(block.code, block.title, "exec"), {"__name__": "__main__"})
            return capsys.readouterr().out
        command = ["bash", "-euo", "pipefail", "-c", block.code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


# What an example prints or leaves behind, by its heading: a pattern of its output, a file.
SHOWS = {
    "Convert": (r"verified: .*\n.*\n.*8 bits, groups of 64", "models/minilm-8bit/model.safetensors"),
    "Embed": (r"\(3, 64\)\narray\(\[\[1", "models/minilm/modules.json"),
    "Fine-tune": (r"^[01]\.\d+$", "runs/sentiment/best_model/head/model.safetensors"),
    "Predict": (r"^\[{'label': '\w+', 'confidence': 0\.\d+}, {", "runs/sentiment/history.json"),
    "Fine-tune embeddings": (r"^[01]\.\d+$", "runs/embeddings/best_model/modules.json"),
    "Several tasks on one encoder": (
        r"^{'sentiment': \[{'label': '\w+', 'confidence': .*'intent': .*'emotion': ",
        "models/tasks/multihead_config.json",
    ),
    "Use a task model from the Hub": (r"^array\(\[\[-?\d", "models/sst2/config.json"),
    "Pipelines": (r"^\[{'label': 'LABEL_\d', 'score': 0\.\d+}\]$", "models/sst2/config.json"),
    "The encoder alone": (r"\(2, \d+, 64\) \(2, 64\) 3", "models/minilm/tokenizer.json"),
    "From the command line": (
        r"(?s)accuracy +[01]\.\d+.*\n\w+ +[01]\.\d+  is it going to rain on Friday.*\n *1 .*\n *2 .*\n *3 ",
        "runs/confusion.png",
    ),
}


def test_every_example_is_expected() -> None:
    assert [block.title for block in RUN] == list(SHOWS)


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.title)
def test_an_example_runs(block: Block, run: Callable[[Block], str], place: Path) -> None:
    """In order: later examples use what earlier ones made."""
    printed = run(block)
    output, file = SHOWS[block.title]
    assert re.search(output, printed, re.MULTILINE), printed
    assert (place / file).is_file()


def test_the_other_blocks_name_commands_that_exist() -> None:
    others = [block for block in BLOCKS if block not in RUN]
    assert {block.language for block in others} == {"sh"}
    code = "\n".join(block.code for block in others)
    makefile, project = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    targets, extras = re.findall(r"^make (\S+)", code, re.MULTILINE), re.findall(r"\.\[(\w+)\]", code)
    assert targets == ["demo", "test"]
    assert extras == ["convert", "search", "cuda13"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert all(re.search(rf"^{extra} = ", project, re.MULTILINE) for extra in extras)


def test_every_supported_architecture_is_listed() -> None:
    from mlx_bert.encoders import ENCODERS

    section = README.partition("## What is supported")[2].partition("Other types are refused")[0]
    listed = re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)))
    assert sorted(set(listed) - {"model_type"}) == sorted(ENCODERS)


def test_every_head_is_listed() -> None:
    from heads import HEADS

    (listed,) = re.findall(r"that `create_bert_with_head` takes:\s(.*?)\.$", README, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == sorted(HEADS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paths_that_are_named_exist(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    paths = {path for path in re.findall(r"`([\w./-]+/[\w.-]*)`", text) if not path.startswith(("runs/", "models/"))}
    missing = {path for path in paths if not (ROOT / path).exists() and not re.search(r"/(test_)?x\.py$", path)}
    assert len(paths) > 8
    assert missing == set()


def test_a_figure_of_speed_stands_beside_the_command_that_made_it() -> None:
    figure = r"\d+(\.\d+)? ?(texts/s|tokens/s|GFLOP|ms\b)|\d+(\.\d+)?x (as|faster|slower)"
    sections = [section for section in README.split("\n## ") if re.search(figure, section)]
    assert [section.splitlines()[0] for section in sections if "python -m benchmarks" not in section] == []
