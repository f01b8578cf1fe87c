"""``Trainer``: the one training loop.

A run is phases of epochs of updates; an update averages the gradients of one or more batches. Everything random is a
function of the seed and of counters (``TrainState``), so a resumed run repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_bert.data.collate import Arrays
from mlx_bert.data.readers import Example
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.best_heads import BestHeads, heads_are_apart
from mlx_bert.training.callbacks import Callback, ProgressBar
from mlx_bert.training.checkpoints import FREE_SETTINGS, TrainState, load_model_arrays, model_arrays
from mlx_bert.training.distributed import World
from mlx_bert.training.feed import Feed, default_collator, labels_are_classes
from mlx_bert.training.freezing import Phase, apply_freeze, freeze_again, freeze_tasks, frozen_keys, phases_of
from mlx_bert.training.loggers import loggers_of
from mlx_bert.training.lora import apply_lora, config_from_args
from mlx_bert.training.loss_record import LossRecord
from mlx_bert.training.objective import HeadObjective, Objective, batch_forward, evaluate, is_greater_better
from mlx_bert.training.optimizers import GroupedOptimizer, parameter_groups
from mlx_bert.training.outcome import TrainingInterrupted, TrainResult
from mlx_bert.training.recompute import encoder_layers, gradient_checkpointing
from mlx_bert.training.run_folder import HISTORY, RunFolder
from mlx_bert.training.schedules import schedules_of
from mlx_bert.training.setup import setup_of
from mlx_bert.training.step import TrainingStep, compiles, flat_parameters, install, maybe_compile

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a model.

    Args:
        model: a ``BertWithHead``, or any module with an ``objective`` for it. Its weights become float32.
        args: the settings.
        train_examples: dicts with ``labels`` and either ``input_ids`` or ``text``.
        eval_examples: the same, to evaluate on; None for no evaluation.
        tokenizer: needed for examples of text; saved with the model.
        collate: examples -> batch; None pads, to few lengths where the update is compiled.
        objective: loss and metrics; None takes the head's.
        callbacks: called in order.
        sampler: batches of each epoch (``batches(epoch)`` and ``len``); None makes length-bucketed shuffled ones.

    Raises:
        ValueError: no examples, or settings that don't fit the model.
    """

    history_file = HISTORY
    measures_without_examples = False  # whether _measure finds something when there are no eval_examples

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArgs,
        train_examples: Sequence[Example],
        eval_examples: Sequence[Example] | None = None,
        tokenizer: Tokenizer | None = None,
        collate: Callable[[Sequence[Example]], Arrays] | None = None,
        objective: Objective | None = None,
        callbacks: Sequence[Callback] = (),
        sampler: Any = None,
    ) -> None:
        self.model = model
        self.args = args
        self.tokenizer = tokenizer
        self.objective = objective or HeadObjective.of(model)
        self.world = World()
        every = [*([ProgressBar()] if args.progress else []), *loggers_of(args), *callbacks]
        self.callbacks = [callback for callback in every if self.world.is_main or not callback.main_only]
        self.output_dir = Path(args.output_dir)
        measures = eval_examples is not None or self.measures_without_examples
        if (args.patience or args.metric or args.best_heads) and not measures:
            raise ValueError(
                "[Trainer] expected eval_examples with patience, metric or best_heads but got none. Give some."
            )
        collate = collate or default_collator(model, tokenizer, exact=not compiles(args))
        needs_labels = getattr(self.objective, "needs_labels", True)
        classes = labels_are_classes(model, self.objective)
        given = (train_examples, eval_examples, tokenizer, collate, sampler, needs_labels, self.world, classes)
        self.feed = Feed(args, *given)
        types = {str(array.dtype).removeprefix("mlx.core.") for _, array in tree_flatten(model.parameters())}
        if (half := sorted(types & {"float16", "bfloat16"})) and self.world.is_main:
            logger.warning(
                "[train] the weights come in %s, and training begins from what that type holds. If the file has more "
                'digits, load them with dtype="float32".', half[0],
            )  # fmt: skip
        self.model.set_dtype(mx.float32)
        self.adapters = config_from_args(args)
        if self.adapters is not None:
            mx.random.seed(args.seed)
            self._found = frozen_keys(model)  # adapters freeze what they stand beside
            apply_lora(model, self.adapters)
        self.state = TrainState()
        bert = getattr(model, "bert", None)
        self.phases = phases_of(args, bert.get_num_layers() if bert is not None else None)
        self.updates_per_epoch = math.ceil(len(self.feed.sampler) / args.gradient_accumulation_steps)
        self.total_steps = self.updates_per_epoch * sum(phase.epochs for phase in self.phases)
        self._forward = maybe_compile(args)(batch_forward(model, self.objective), inputs=[model.state])
        self._stop = False
        self.best_heads: BestHeads | None = None
        self._losses = LossRecord(self.world, self.feed.name_of)
        setup = setup_of(model, self.objective, self.feed.sampler, collate, self.feed.fingerprint(), self.world.size)
        self.folder = RunFolder(args, model, tokenizer, self.adapters, self.world, setup, self.history_file)

    # --- what surrounds the loop --------------------------------------------------------------------------------------

    def train(self, resume: bool | str | Path = False) -> TrainResult:
        """Run to the end; the model then has the best weights (the last ones without evaluation).

        What was frozen before is so again afterwards.

        Args:
            resume: True continues from the newest checkpoint in ``output_dir`` (and begins anew if there is none); a
                folder continues from that checkpoint.

        Raises:
            FileExistsError: ``output_dir`` has results of another run, and ``resume`` is False.
            NonFiniteLoss: the loss or gradient of a batch is not finite; the message names the batch.
            TrainingInterrupted: SIGINT (Ctrl-C) or SIGTERM came; a checkpoint was written first.
        """
        started = time.perf_counter()
        self._require_same_run()
        checkpoint = self.folder.find_checkpoint(resume)
        self.folder.prepare()
        self._began = started
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            if self.args.gradient_checkpointing:
                stack.enter_context(gradient_checkpointing(encoder_layers(self.model)))
            if self.adapters is None:
                self._found = frozen_keys(self.model)
            stack.callback(freeze_again, self.model, self._found)
            try:
                self._run(checkpoint)
            finally:
                self._call("on_train_end")
        self.model.eval()
        self.folder.write_history(self.state)
        self.world.barrier()  # what rank 0 writes is complete when any rank is through
        return TrainResult(
            self.state.best_metrics,
            self.state.best_step,
            self.state.step,
            time.perf_counter() - started,
            self.state.stopped_early,
            self.state.history,
            self.output_dir,
        )

    def evaluate(self, examples: Sequence[Example] | None = None) -> dict[str, float]:
        """Loss and metrics of the model as it is. All ranks must call it together; each gets the result.

        Args:
            examples: as in the constructor; None for the evaluation examples.
        """
        if examples is None and self.feed.evaluation is None and not self.measures_without_examples:
            raise ValueError("[Trainer] expected examples to evaluate on but got none. Give eval_examples.")
        self.model.eval()
        if examples is None:
            return self._measure()
        batches = self.feed.eval_batches(self._prepared(examples))
        return evaluate(self.model, self.objective, batches, self._forward, self.world)[0]

    def _prepared(self, examples: Sequence[Any]) -> list[Example]:
        """Examples to evaluate on, as the collator takes them."""
        return self.feed.prepare(examples, "examples")

    def _require_same_run(self) -> None:
        """Check that all ranks do the same: they would wait for each other for ever, or average what does not fit."""
        if self.world.size == 1:
            return
        for name, value in self.args.to_dict().items():
            if name not in FREE_SETTINGS:
                self.world.require_same(f"setting {name}", str(value))
        self.world.require_same("training data", self.feed.fingerprint())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM asks to stop after the present update; the second interrupts at once."""
        self._stop = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            logger.warning("[train] stopping after this update; once more to stop at once, without a checkpoint.")

        asking = [signal.SIGINT, signal.SIGTERM]
        if self.world.size > 1 and hasattr(signal, "SIGHUP"):  # what Ctrl-C at the launcher is on another machine
            asking.append(signal.SIGHUP)
        before = {number: signal.signal(number, ask) for number in asking}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _run(self, path: Path | None) -> None:
        checkpoint = self.folder.load_checkpoint(path) if path else None
        if checkpoint:
            self.state = checkpoint.state
            load_model_arrays(self.model, checkpoint.model, "resume")
        elif self.world.size > 1:
            load_model_arrays(self.model, self.world.share_arrays(model_arrays(self.model)), "distributed")
        self.folder.write_json("training_args.json", self.args.to_dict())
        mx.eval(self.model.parameters())
        if self.args.best_heads:
            self.best_heads = BestHeads(self.model, self.output_dir, self.world, resumed=checkpoint is not None)
        self._call("on_train_begin")
        for number in range(self.state.phase, len(self.phases)):
            phase = self.phases[number]
            self._begin_phase(phase)
            if checkpoint:
                self.optimizer.load_state_arrays(checkpoint.optimizer)
                if checkpoint.average is not None:
                    self.step.average.update(checkpoint.average)
                checkpoint = None
            while self.state.epoch < phase.epochs and not self._out_of_patience():
                self._epoch(phase)
            self._end_phase(phase, is_last=number == len(self.phases) - 1)

    def _begin_phase(self, phase: Phase) -> None:
        args = self.args
        if not phase.is_main and phase.freeze == "backbone" and args.freeze_learning_rate is not None:
            args = replace(args, head_learning_rate=args.freeze_learning_rate)
        freeze_again(self.model, self._found)
        self.is_frozen = apply_freeze(self.model, phase.freeze)
        if not phase.is_main and self.phases[-1].freeze == "as_is":  # nor does a phase move what came frozen
            freeze_again(self.model, self._found, exactly=False)
        if args.freeze_tasks:
            freeze_tasks(self.model, args.freeze_tasks)
        if args.best_heads and not heads_are_apart(self.model):
            raise ValueError(
                "[train] expected best_heads with several tasks of which nothing but their heads trains, but other "
                "parameters train too. Freeze them, or leave best_heads out."
            )
        if self.is_frozen and args.cache_encoder and getattr(self.model, "reads_states", True):
            self.feed.cache(self.model.bert, lambda: self._stop)
        else:
            self.feed.drop_cache()
        self.optimizer = GroupedOptimizer(parameter_groups(self.model, args), flat_parameters(self.model))
        total = self.updates_per_epoch * phase.epochs
        self.schedules = schedules_of(args, total, self.updates_per_epoch)
        self.step = TrainingStep(self.model, self.objective, self.optimizer, args, self.world)

    def _epoch(self, phase: Phase) -> None:
        state, size = self.state, self.args.gradient_accumulation_steps
        batches = self.feed.sampler.batches(state.passes)
        groups = [batches[start : start + size] for start in range(0, len(batches), size)]
        self._train_mode()
        ready = self.feed.collated(groups[state.update]) if state.update < len(groups) else None
        while state.update < len(groups):
            group = groups[state.update]
            self.optimizer.set_factor(*(schedule(state.phase_step) for schedule in self.schedules))
            ranks, first = self.world.size, (self.args.seed << 32) + self.world.rank
            seeds = [first + (state.micro_step + number) * ranks for number in range(len(group))]
            losses, weights, norm = self.step(ready, seeds, self._stop)
            self.step.start(losses, weights, norm)
            state.update += 1
            state.step += 1
            state.phase_step += 1
            state.micro_step += len(group)
            self._losses.add(state.step, state.passes, group, losses, weights, norm)
            # the next batch is padded and stacked while this one computes
            ready = self.feed.collated(groups[state.update]) if state.update < len(groups) else None
            self.step.evaluate(losses, weights, norm)
            self._call("on_step")
            if state.step % self.args.log_every == 0:
                self._read_losses()
            if state.update < len(groups):  # what happens at an epoch's end stands below
                self._between_updates()
                if self._out_of_patience():
                    self._read_losses()
                    return
        self._read_losses()
        state.update = 0
        state.epoch += 1
        state.passes += 1
        self._end_of_epoch(phase)
        state.epoch_loss = state.epoch_weight = 0.0
        self._save_or_stop(self.args.save_every == "epoch" or self._is_due(self.args.save_every))

    def _between_updates(self) -> None:
        if self._is_due(self.args.eval_every):
            self._read_losses()
            self._evaluate(epoch=self.state.passes + self.state.update / self.updates_per_epoch)
            self._train_mode()
        self._save_or_stop(self._is_due(self.args.save_every))

    def _end_of_epoch(self, phase: Phase) -> None:
        every, state = self.args.eval_every, self.state
        at_end = every.isdecimal() and state.epoch == phase.epochs and phase.is_main  # a short run has no other
        if every == "epoch" or self._is_due(every) or at_end:
            self._evaluate(epoch=state.passes)
        else:
            self._publish(self._record_epoch({"epoch": state.passes}, {}))

    def _end_phase(self, phase: Phase, is_last: bool) -> None:
        state = self.state
        state.stopped_early = state.stopped_early or self._out_of_patience()
        if is_last:
            if self.args.average_checkpoints:
                self._average_checkpoints()
            with self._averaged():
                self.folder.save_model("final_model", state, self.optimizer.state_arrays())
        if self.step.average:
            install(self.model, self.step.average)
        if is_last and self.best_heads is not None:
            self._install_best_heads(self.best_heads)
        if state.best_step is not None:
            self.folder.restore_best(state, is_last)
        state.phase, state.epoch, state.update, state.phase_step = state.phase + 1, 0, 0, 0
        state.stale, state.patience_value = 0, None
        if is_last:
            self.folder.forget_best()
            if self.best_heads is not None:
                self.best_heads.forget()

    def _install_best_heads(self, best: BestHeads) -> None:
        """Give the model each task's best head, measure it, and keep it as the best one if it is."""
        if set(best.steps.values()) <= {self.state.best_step}:  # all in one evaluation, which is the best one anyway
            return
        self.step.average.clear()  # it is in the model, and in the heads that evaluations found best
        best.install()
        self._evaluate(self.state.passes, {"best_heads": best.steps})

    def _average_checkpoints(self) -> None:
        """Give the model the mean of its checkpoints, measure it, and keep it as the best one if it is."""
        arrays, names = self.folder.average(self.state.phase)
        if not names:
            logger.warning("[train] no checkpoint was written since the last phase began: there is no mean of them.")
            return
        load_model_arrays(self.model, arrays, "average")
        mx.eval(self.model.parameters())
        self._evaluate(self.state.passes, {"averaged": names})

    def _is_due(self, every: str) -> bool:
        return every.isdecimal() and self.state.step % int(every) == 0

    def _save_or_stop(self, is_due: bool) -> None:
        asked = self.step.stop_asked if self.world.size > 1 else self._stop
        path = self._save_checkpoint(is_due) if is_due or asked else None
        if asked:
            self.world.barrier()  # a launcher ends the other ranks when one ends: not before all is written
            raise TrainingInterrupted(path)

    def _train_mode(self) -> None:
        self.model.train()
        if self.is_frozen:  # a frozen encoder has no dropout: its outputs are what can be cached
            self.model.bert.eval()

    # --- reading and recording ----------------------------------------------------------------------------------------

    def _read_losses(self) -> None:
        """Wait for the losses since the last reading, check them and record their mean."""
        reading = self._losses.read()
        if reading is None:
            return
        self.state.epoch_loss += reading.total
        self.state.epoch_weight += reading.weight
        record = {
            "step": self.state.step,
            "loss": reading.total / max(reading.weight, 1e-9),
            "grad_norm": reading.grad_norm,
            "learning_rate": self._learning_rate(),
        }
        self.state.history["steps"].append(record)
        self._call("on_log", record)

    def _learning_rate(self) -> float:
        """The largest rate of the last update."""
        factors = [schedule(max(0, self.state.phase_step - 1)) for schedule in self.schedules]
        return max(factors[group.is_head] * group.learning_rate for group in self.optimizer.groups)

    def _measure(self) -> dict[str, float]:
        """What an evaluation during the run finds, by name."""
        return evaluate(self.model, self.objective, self.feed.eval_batches(), self._forward, self.world)[0]

    def _evaluate(self, epoch: float, note: dict[str, Any] | None = None) -> None:
        about = {"epoch": epoch, **(note or {})}
        if self.feed.evaluation is None and not self.measures_without_examples:
            self._publish(self._record_epoch(about, {}))
            return
        state = self.state
        self.model.eval()
        with self._averaged():
            metrics = self.world.share(self._measure())  # one machine's rounding decides for all
            name = self._metric_name(metrics)
            value = metrics[name]
            sign = 1.0 if self._greater_is_better(name) else -1.0
            state.score, state.score_step = (sign * value if math.isfinite(value) else None), state.step
            if self.best_heads is not None:
                self.best_heads.update(metrics, name, sign, state.step)
            is_best = math.isfinite(value) and (state.best_value is None or sign * (value - state.best_value) > 0)
            if is_best:
                state.best_value, state.best_step, state.best_metrics = value, state.step, metrics
            record = self._record_epoch({**about, "is_best": is_best}, metrics)
            if is_best:
                self.folder.save_best(state, self.optimizer.state_arrays())
        reference = state.patience_value
        # a first value that is no number would never be improved upon
        if math.isfinite(value) and (reference is None or sign * (value - reference) > self.args.min_delta):
            state.patience_value, state.stale = value, 0
        else:
            state.stale += 1
        self._publish(record)

    def _publish(self, record: dict[str, Any]) -> None:
        self.folder.write_history(self.state)
        self._call("on_evaluate", record)

    def _record_epoch(self, record: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
        state = self.state
        record = {
            **record,
            "step": state.step,
            "phase": self.phases[state.phase].name,
            "train_loss": state.epoch_loss / max(state.epoch_weight, 1e-9),
            **{f"eval_{name}": value for name, value in metrics.items()},
            "learning_rate": self._learning_rate(),
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        state.history["epochs"].append(record)
        return record

    def _metric_name(self, metrics: dict[str, float]) -> str:
        wanted = self.args.metric
        if wanted is None:
            own = getattr(getattr(getattr(self.model, "head", None), "config", None), "competition_metric", "loss")
            return own if own in metrics else "loss"
        if wanted not in metrics:
            raise ValueError(
                f"[train] expected metric to be one of {', '.join(metrics)} but got {wanted!r}. Choose one."
            )
        return wanted

    def _greater_is_better(self, name: str) -> bool:
        given = self.args.greater_is_better
        return is_greater_better(name) if given is None else given

    def _out_of_patience(self) -> bool:
        return self.args.patience > 0 and self.state.stale >= self.args.patience

    # --- saving -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within, the model has the moving average of its weights, if one is kept."""
        if not self.step.average:
            yield
            return
        own = flat_parameters(self.model)
        install(self.model, self.step.average)
        try:
            yield
        finally:
            install(self.model, own)

    def _save_checkpoint(self, is_scheduled: bool) -> Path:
        self._read_losses()
        path = self.folder.save_checkpoint(
            self.state, self.optimizer.state_arrays(), self.step.average or None, self._learning_rate(), is_scheduled
        )
        self._call("on_checkpoint", path)
        return path

    def _call(self, hook: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *values)
