"""One rank of all runs in the tests of data-parallel training: starting takes longer than a run.

Each line of its input names a file of settings: model, data, evaluation, args (per rank), and what to do. For each it
prints a line of JSON: what came out, and what the run printed.
"""

import contextlib
import io
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from unittest.mock import patch

import mlx.nn as nn

from mlx_bert.__main__ import main as command_line
from mlx_bert.core import BertCore
from mlx_bert.data.collate import token_count, tokenize_examples
from mlx_bert.data.samplers import LengthBucketSampler
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.sentence_modules import Pooling
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training import checkpoints, sentence_losses
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback
from mlx_bert.training.distributed import World
from mlx_bert.training.hard_negatives import HardNegatives
from mlx_bert.training.optimizers import GroupedOptimizer
from mlx_bert.training.outcome import TrainingInterrupted
from mlx_bert.training.sentence import SentenceEncoderTrainer
from mlx_bert.training.step import TrainingStep
from mlx_bert.training.trainer import Trainer

STEP = 0.1  # of plain gradient descent, whose weights differ as the gradients do


def gradient_descent(optimizer, gradients, parameters):
    return {name: parameters[name] - STEP * gradient for name, gradient in gradients.items()}


def build(settings, rank=0, callbacks=()):
    """The trainer of a rank."""
    model, tokenizer = BertWithHead.from_pretrained(settings["model"]), Tokenizer.from_pretrained(settings["model"])
    for _, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module._p_1 = 1 - settings.get("dropout", 0.0)
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = settings.get("dropout", 0.0)
    data = settings["data"][rank % len(settings["data"])]
    args = TrainingArgs(**settings["args"], output_dir=settings["output"][rank % len(settings["output"])])
    sampler = None
    if settings.get("own_sampler"):
        data = tokenize_examples(data, tokenizer)
        sampler = LengthBucketSampler([token_count(example) for example in data], args.batch_size, args.seed)
    evaluation = settings.get("evaluation")
    return Trainer(model, args, data, evaluation, tokenizer, callbacks=callbacks, sampler=sampler)


def build_sentence(settings, run, output):
    """The trainer of a sentence encoder without dropout; ``run`` has its loss and options."""
    loss = getattr(sentence_losses, run["loss"])(**run.get("loss_options", {}))
    if "chunk_size" in run:
        loss = sentence_losses.Cached(loss, run["chunk_size"])
    core = BertCore.from_pretrained(settings["model"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    pooling = Pooling({"word_embedding_dimension": core.get_hidden_size(), "pooling_mode_mean_tokens": True})
    encoder = SentenceEncoder(core, Tokenizer.from_pretrained(settings["model"]), [pooling])
    options = dict(run.get("options", {}))
    if mined := options.pop("hard_negatives", None):
        options["hard_negatives"] = HardNegatives(**mined)
    args = TrainingArgs(**{**settings["args"], **run.get("args", {})}, output_dir=output)
    return SentenceEncoderTrainer(encoder, args, run["data"], run.get("evaluation"), loss=loss, **options)


def train_sentences(settings, rank):
    """Losses of the updates and metrics of each run, and those of its evaluation rows afterwards."""
    found = []
    for number, run in enumerate(settings["runs"]):
        trainer = build_sentence(settings, run, f"{settings['output'][rank]}/{number}")
        result = trainer.train()
        losses = [record["loss"] for record in result.history["steps"]]
        measured = trainer.evaluate(run["evaluation"]) if "evaluation" in run else {}
        found.append({"losses": losses, "metrics": result.metrics, "measured": measured})
    return found


def train_frozen(settings, rank, replace):
    """How often this rank ran the encoder in each run, and whether its outputs were kept."""
    found, calls, call = [], [0], BertCore.__call__

    def counted(*args, **kwargs):
        calls[0] += 1
        return call(*args, **kwargs)

    replace(BertCore, "__call__", counted)
    for number, changes in enumerate(settings["frozen"]):
        calls[0] = 0
        args = {**settings["args"], "freeze": "backbone", **changes[rank]}
        trainer = build({**settings, "args": args, "output": [f"{settings['output'][0]}/{number}"]}, rank)
        if str(args.get("cache_dir")).endswith("/stop"):
            try:
                trainer.feed.cache(trainer.model.bert, lambda: rank == 1)
            except KeyboardInterrupt:
                found.append("stopped")
            continue
        trainer.train()
        found.append([calls[0], trainer.feed.is_cached])
    return found


def stop_everywhere(settings, rank, replace):
    """Stop a run at each of several points and resume it; how each ended, and what calls there are to stop at.

    A point is a rank, a function that it is about to call, and which time that is (from 1).
    """
    calls, point = {}, [None]

    def counted(owner, name):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # the run listens
                calls[name] = calls.get(name, 0) + 1
                if point[0] == [rank, name, calls[name]]:
                    os.kill(os.getpid(), signal.SIGTERM)
            return function(*args, **kwargs)

        replace(owner, name, call)

    counted(World, "_collective")
    counted(TrainingStep, "_part_step")
    counted(checkpoints, "write_safetensors")

    def run(name, resume=False):
        calls.clear()
        try:
            build({**settings, "output": [f"{settings['output'][0]}/{name}"]}, rank).train(resume=resume)
        except TrainingInterrupted as stopped:
            return stopped.checkpoint.name
        return "finished"

    found = [run("whole")]
    counts = dict(calls)
    for number, point[0] in enumerate(settings["points"]):
        found.append(run(number))
        point[0] = None
        found.append(run(number, resume=True) if found[-1] != "finished" else "finished")
    return [found, counts]


class Signal(Callback):
    """Sends this process SIGTERM after some updates, as a user would."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Log(Callback):
    main_only = True

    def on_evaluate(self, trainer, record):
        print("evaluated", flush=True)


def run_command(words):
    """The exit status of ``mlx-bert WORDS``, or of a script of the examples."""
    if not words[0].endswith(".py"):
        return command_line(words)
    with patch.object(sys, "argv", words):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            return end.code


def train(settings, rank):
    """How a run of the trainer ended."""
    callbacks = [Log()]
    if rank == 1 and "stop_at" in settings:
        callbacks.append(Signal(settings["stop_at"]))
    try:
        trainer = build(settings, rank, callbacks)
        result = trainer.train(resume=settings.get("resume", False))
    except TrainingInterrupted as stopped:
        return {"stopped": stopped.checkpoint.name}
    except (ValueError, OSError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    shown = {"metrics": result.metrics, "steps": result.steps, "best_step": result.best_step}
    return {**shown, "history": result.history, "size": trainer.world.size}


def do(settings, rank, replace):
    """What the settings ask for."""
    if settings.get("plain"):
        replace(GroupedOptimizer, "apply", gradient_descent)
    if "command" in settings:
        return run_command(settings["command"])
    if "runs" in settings:
        return train_sentences(settings, rank)
    if "points" in settings:
        return stop_everywhere(settings, rank, replace)
    if "frozen" in settings:
        return train_frozen(settings, rank, replace)
    return train(settings, rank)


def main():
    for line in sys.stdin:
        settings, printed = json.loads(Path(line.strip()).read_text()), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(printed))
            found = do(
                settings,
                int(os.environ["MLX_RANK"]),
                lambda *what: stack.enter_context(patch.object(*what)),
            )
        print(json.dumps([found, printed.getvalue()]), flush=True)


if __name__ == "__main__":
    main()
