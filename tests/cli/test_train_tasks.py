"""``mlx-bert train --task multi_task`` and ``mtl``: what lies in the folder and what can be done with it afterwards."""

from cli_cases import labelled, lines

from mlx_bert.checkpoint import read_json
from mlx_bert.multihead import MultiheadClassifier


def test_a_classifier_knows_the_settings_it_was_trained_with(command, tmp_path):
    data, output = lines(tmp_path / "d.jsonl", labelled(24)), tmp_path / "run"
    options = ("--weight-decay", "0.2", "--warmup-ratio", "0.3", "--freeze-epochs", "1", "--patience", "2",
               "--min-delta", "0.01", "--max-grad-norm", "0.5", "--gradient-accumulation-steps", "2", "--freeze", "1",
               "--eval-size", "0.25", "--metric", "f1", "--epochs", "2", "--seed", "7")  # fmt: skip
    command("train", "--task", "multi_task", "--train", data, "--tasks", "mood", "--output", output, *options)
    found = MultiheadClassifier().load(output / "best_model")
    training, encoder, evaluation = found.config.training, found.config.encoder, found.config.eval
    assert (training.weight_decay, training.warmup_ratio, training.max_grad_norm) == (0.2, 0.3, 0.5)
    assert (training.gradient_accumulation_steps, training.val_size, training.test_size) == (2, 0.25, 0.0)
    assert (training.epochs, training.seed, training.save_every, training.batch_size) == (2, 7, "no", 8)
    assert (encoder.freeze_epochs, encoder.unfreeze_layers) == (1, 1)
    assert (evaluation.patience, evaluation.min_delta, evaluation.metric) == (2, 0.01, "f1")
    found.config.training.output_dir = str(tmp_path / "more")
    found.add_task("thing", [{"text": row["text"], "label": row["thing"]} for row in labelled(24)], progress=False)
    (run,) = (tmp_path / "more").iterdir()
    added, first = read_json(run / "training_args.json"), read_json(output / "training_args.json")
    same = ("weight_decay", "warmup_ratio", "max_grad_norm", "gradient_accumulation_steps", "patience", "min_delta",
            "metric", "seed", "batch_size")  # fmt: skip
    assert {name: added[name] for name in same} == {name: first[name] for name in same}
    assert added["learning_rate"] == 3e-3  # that of the command
    assert added["head_learning_rate"] == 10 * 3e-3  # what its heads learnt with
