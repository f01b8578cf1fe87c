import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mlx_bert.training.args import TrainingArgs, add_arguments, given_arguments


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return given_arguments(parser.parse_args(argv))


def test_every_setting_has_an_option_and_a_help_text():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {action.dest: action for action in parser._actions}
    for field in dataclasses.fields(TrainingArgs):
        assert len(options[field.name].help) > 10


def test_only_given_options_appear_and_have_the_right_type():
    assert parse() == {}
    given = parse("--learning-rate", "1e-3", "--freeze", "4", "--no-progress", "--warmup-steps", "7", "--output", "x")
    assert given == {"learning_rate": 1e-3, "freeze": "4", "progress": False, "warmup_steps": 7, "output_dir": "x"}
    assert TrainingArgs(**given).warmup_steps == 7


def test_round_trip_through_a_dict():
    args = TrainingArgs(epochs=2, freeze=3, learning_rate=1, eval_every=50)
    assert args.freeze == "3"
    assert args.eval_every == "50"
    assert isinstance(args.learning_rate, float)
    assert TrainingArgs.from_dict(args.to_dict()) == args
    with pytest.raises(ValueError, match=r"unknown settings epoch\. Known: output_dir, epochs"):
        TrainingArgs.from_dict({"epoch": 3})


def test_paths_and_numbers_of_numpy():
    args = TrainingArgs(
        output_dir=Path("runs/a"), epochs=np.int64(3), learning_rate=np.float32(0.5), freeze=np.int32(2)
    )
    assert args == TrainingArgs(output_dir="runs/a", epochs=3, learning_rate=0.5, freeze="2")
    assert json.loads(json.dumps(args.to_dict())) == args.to_dict()
    with pytest.raises(ValueError, match=r"expected epochs to be int but got 2.5"):
        TrainingArgs(epochs=np.float32(2.5))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "expected epochs to be 1 or more but got 0"),
        ({"epochs": True}, "expected epochs to be int but got True"),
        ({"learning_rate": "fast"}, "expected learning_rate to be float but got 'fast'"),
        ({"optimizer": "sgd"}, "expected optimizer to be one of adamw"),
        ({"dtype": "float16"}, "expected dtype to be one of float32, bfloat16"),
        ({"warmup_ratio": 1.0}, r"expected warmup_ratio to be in \[0, 1\)"),
        ({"freeze": "top"}, "expected freeze to be 'none', 'embeddings', 'backbone', 'as_is' or n"),
        ({"eval_every": "0"}, "expected eval_every to be 'epoch', 'no' or a number of updates"),
        ({"schedule_power": 2.0}, "None unless schedule or head_schedule is 'polynomial'"),
        ({"head_schedule": "steps"}, "expected head_schedule to be one of cosine"),
        ({"head_warmup_ratio": 1.0}, "expected head_warmup_ratio to be in "),
        ({"head_weight_decay": -1.0}, "expected head_weight_decay to be 0 or more"),
        ({"freeze_learning_rate": 1e-3}, "None without freeze_epochs"),
        ({"gradual_unfreezing": 1, "freeze": "backbone"}, "0 when freeze is 'backbone'"),
        ({"layer_decay": 0.0}, r"expected layer_decay to be in \(0, 1\]"),
        ({"ema_decay": 1.0}, r"expected ema_decay to be in \(0, 1\)"),
        ({"weight_decay": -1.0}, "expected weight_decay to be 0 or more"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainingArgs(**setting)
