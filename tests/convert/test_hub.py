"""Hub ids and folders. No test touches the network: the Hub's client is replaced."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("huggingface_hub")
import huggingface_hub
from huggingface_hub import errors

from convert import hub


def fake_hub(monkeypatch, folder: Path, files: list[str], online: Exception | None = None):
    """The Hub with one repository; what was asked for comes back in the returned list."""
    downloads = []

    class Api:
        def model_info(self, repo, revision=None):
            if online is not None:
                raise online
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

    def snapshot_download(repo, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only and not folder.exists():
            raise errors.LocalEntryNotFoundError("nothing there")
        downloads.append((repo, revision, allow_patterns, local_files_only))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return downloads


def response_error(kind):
    return kind("401", response=SimpleNamespace(headers={}, request=None, status_code=401))


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert hub.fetch(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert hub.fetch("~/model") == tmp_path / "model"
    with pytest.raises(ValueError, match="has no revision 'v1'"):
        hub.fetch(tmp_path, "v1")


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ValueError, match="is a file"):
        hub.fetch(path)


@pytest.mark.parametrize("name", ["/no/such", "./missing", "a/b/c", "a b", "../x", "", "-x", "owner/"])
def test_neither_folder_nor_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # beside which there is nothing
    with pytest.raises(FileNotFoundError, match="neither a folder that exists nor a hub id"):
        hub.fetch(name)


def test_downloads_only_what_is_needed(tmp_path, monkeypatch):
    files = [
        *("config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "rust_model.ot", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"),
        *("onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml", "sentence_bert_config.json"),
        *("config_sentence_transformers.json", "data_config.json", "train_script.py", "sentencepiece.bpe.model"),
    ]
    downloads = fake_hub(monkeypatch, tmp_path, files)
    assert hub.fetch("owner/name", "v2") == tmp_path
    ((repo, revision, chosen, _),) = downloads
    assert (repo, revision) == ("owner/name", "v2")
    assert set(chosen) == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("vocab.txt", "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
        *("sentence_bert_config.json", "config_sentence_transformers.json", "sentencepiece.bpe.model"),
    }


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["pytorch_model.bin", "model.safetensors.index.json", "model-00001-of-00001.safetensors"], "model"),
        (["pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin"], "pytorch_model.bin"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "optimizer.bin"], "pytorch_model"),
        (["tf_model.h5"], None),
    ],
)
def test_one_format_of_weights(files, weights):
    chosen = hub.select_files([*files, "config.json"])
    wanted = [name for name in files if weights and name.startswith(weights)]
    if weights == "pytorch_model.bin":
        wanted = ["pytorch_model.bin"]
    assert chosen == sorted([*wanted, "config.json"])


def test_a_pattern_is_one_file(tmp_path, monkeypatch):
    downloads = fake_hub(monkeypatch, tmp_path, ["config.json", "tokens[1].json"])
    hub.fetch("owner/name")
    assert downloads[0][2] == ["config.json", "tokens[[]1].json"]


def test_no_transformers_model(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, ["weights.gguf"])
    with pytest.raises(ValueError, match=r"'owner/name' has no config\.json"):
        hub.fetch("owner/name")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (response_error(errors.GatedRepoError), "is gated.*hf auth login"),
        (response_error(errors.RepositoryNotFoundError), "neither a folder nor on the Hub"),
        (response_error(errors.RevisionNotFoundError), "'owner/name' has no revision 'v9'"),
        (errors.OfflineModeIsEnabled("offline mode is enabled."), "the Hub can't be reached: offline mode is enabled"),
        (ConnectionError("no route"), "the Hub can't be reached: no route"),
    ],
)
def test_errors_of_the_hub(tmp_path, monkeypatch, error, message):
    fake_hub(monkeypatch, tmp_path / "missing", [], online=error)
    with pytest.raises(FileNotFoundError, match=message):
        hub.fetch("owner/name", "v9")


def test_bad_id_by_the_hubs_rules(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, [], online=errors.HFValidationError("too long"))
    with pytest.raises(ValueError, match="'owner/name' is not a hub id: too long"):
        hub.fetch("owner/name")


def test_offline_takes_the_cache(tmp_path, monkeypatch):
    downloads = fake_hub(monkeypatch, tmp_path, [], online=errors.OfflineModeIsEnabled("offline"))
    assert hub.fetch("owner/name") == tmp_path
    assert downloads == [("owner/name", None, None, True)]


def test_a_full_disk_is_not_a_missing_connection(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, [], online=OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        hub.fetch("owner/name")


def test_without_the_hubs_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="needs huggingface-hub"):
        hub.fetch("owner/name")
