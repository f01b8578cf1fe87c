"""The model card and the upload, with the Hub's client watched instead of reached."""

import huggingface_hub
import pytest
import yaml

from convert import hub
from convert.__main__ import main
from convert.card import write_card


@pytest.fixture
def sent(monkeypatch) -> list:
    calls = []

    def create_repo(self, repo, exist_ok):
        calls.append(("create", repo, exist_ok))
        return f"https://hub/{repo}"

    def upload_folder(self, folder_path, repo_id, commit_message):
        calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return calls


def test_convert_and_upload(sent, minilm_source, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([str(minilm_source), "--output", str(folder), "-q", "--verify", "--upload-repo", "me/mini"]) == 0
    (_, repo, _), (_, target, files) = sent
    assert repo == target == "me/mini"
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert "uploaded to https://hub/me/mini" in capsys.readouterr().out
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "mlx-bert"
    assert data["pipeline_tag"] == "sentence-similarity"
    assert {"mlx", "bert"} <= set(data["tags"])
    assert 'SentenceEncoder.from_pretrained("me/mini")' in text
    assert "| smallest cosine to the unquantised model | 0.999" in text
    assert "Quantised: affine, 8 bits, groups of 64." in text
    assert "transformers and sentence-transformers load" not in text


def test_a_card_without_a_card_before(tiny_bert_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_bert_folder / "config.json").read_bytes())
    card = write_card(tmp_path, tiny_bert_folder, "me/tiny").read_text()
    assert "BertCore.from_pretrained" in card
    assert "license" not in card
    assert "load the same folder" in card


def test_a_wrong_repository_is_refused(sent, tiny_bert_folder, tmp_path, capsys):
    assert main([str(tiny_bert_folder), "--output", str(tmp_path / "out"), "--upload-repo", "no-owner"]) == 2
    assert "expected a hub id owner/name to upload to but got 'no-owner'" in capsys.readouterr().err
    assert sent == []


def test_an_upload_that_fails_says_why(monkeypatch, tiny_bert_folder, tmp_path, capsys):
    unreachable = hub._network_errors()[0]

    def create_repo(self, repo, exist_ok):
        raise unreachable("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    assert main([str(tiny_bert_folder), "--output", str(tmp_path / "out"), "--upload-repo", "me/x"]) == 2
    assert "could not be sent to 'me/x': no route" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()  # the conversion itself is done


def test_export_from_the_command_line(tiny_bert_folder, tmp_path, capsys):
    from mlx_bert import Tokenizer, create_bert_with_head

    config = {"head_type": "multiclass_classification", "pooling_type": "pooler"}
    model = create_bert_with_head(bert_name=tiny_bert_folder, head_config=config)
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    assert main([str(tmp_path / "model"), "--export", "--output", str(tmp_path / "out")]) == 0
    assert f"written to {tmp_path / 'out'}" in capsys.readouterr().out
    assert main([str(tmp_path / "model"), "--export", "--output", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model"), "--export", "-q"])


def test_a_fine_tuned_model_goes_up_with_its_metrics(sent, tiny_bert_folder, tmp_path):
    from mlx_bert import Tokenizer, create_bert_with_head

    config = {"head_type": "multiclass_classification", "pooling_type": "pooler"}
    model = create_bert_with_head(bert_name=tiny_bert_folder, head_config=config)
    model.save_pretrained(tmp_path / "model", Tokenizer.from_pretrained(tiny_bert_folder))
    (tmp_path / "model" / "metadata.json").write_text('{"step": 3, "metrics": {"accuracy": 0.91234}}')
    given = ["--export", "--output", str(tmp_path / "out"), "--upload-repo", "me/tuned"]
    assert main([str(tmp_path / "model"), *given]) == 0
    assert [call[1] for call in sent] == ["me/tuned", "me/tuned"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| accuracy | 0.9123 |" in card
    assert "pipeline_tag: text-classification" in card
    assert 'BertWithHead.from_pretrained("me/tuned")' in card
