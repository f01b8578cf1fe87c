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
import numpy as np

from mlx_bert.checkpoint import WEIGHTS, entries_of, new_folder, write_json, write_safetensors
from mlx_bert.data.collate import Arrays
from mlx_bert.data.readers import Example
from mlx_bert.data.samplers import BatchIndices
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.callbacks import Callback, ProgressBar
from mlx_bert.training.checkpoints import (
    METADATA,
    TrainState,
    list_checkpoints,
    load_checkpoint,
    load_model_arrays,
    model_arrays,
    remove_partial_files,
    save_checkpoint,
)
from mlx_bert.training.feed import Feed, default_collator
from mlx_bert.training.freezing import Phase, apply_freeze, phases_of
from mlx_bert.training.lora import apply_lora, config_from_args, merged_lora, save_adapters
from mlx_bert.training.objective import HeadObjective, Objective, batch_forward, evaluate, is_greater_better
from mlx_bert.training.optimizers import GroupedOptimizer, parameter_groups
from mlx_bert.training.outcome import NonFiniteLoss, TrainingInterrupted, TrainResult
from mlx_bert.training.recompute import encoder_layers, gradient_checkpointing
from mlx_bert.training.schedules import create_schedule
from mlx_bert.training.step import TrainingStep, compiles, flat_parameters, install, maybe_compile

logger = logging.getLogger(__name__)
HISTORY = "history.json"
BEST_STATE = "best_state.safetensors"  # the best weights while the run lasts; best_model/ is what users load


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
        self.objective = objective or HeadObjective()
        self.callbacks = [*([ProgressBar()] if args.progress else []), *callbacks]
        self.output_dir = Path(args.output_dir)
        if eval_examples is None and (args.patience or args.metric) and not self.measures_without_examples:
            raise ValueError("[Trainer] expected eval_examples with patience or metric but got none. Give some.")
        collate = collate or default_collator(model, tokenizer, exact=not compiles(args))
        needs_labels = getattr(self.objective, "needs_labels", True)
        self.feed = Feed(args, train_examples, eval_examples, tokenizer, collate, sampler, needs_labels)
        self.model.set_dtype(mx.float32)
        self.adapters = config_from_args(args)
        if self.adapters is not None:
            mx.random.seed(args.seed)
            apply_lora(model, self.adapters)
        self.state = TrainState()
        bert = getattr(model, "bert", None)
        self.phases = phases_of(args, bert.get_num_layers() if bert is not None else None)
        self.updates_per_epoch = math.ceil(len(self.feed.sampler) / args.gradient_accumulation_steps)
        self.total_steps = self.updates_per_epoch * sum(phase.epochs for phase in self.phases)
        self._forward = maybe_compile(args)(batch_forward(model, self.objective), inputs=[model.state])
        self._stop = False
        self._pending: list[tuple[Any, ...]] = []

    # --- what surrounds the loop --------------------------------------------------------------------------------------

    def train(self, resume: bool | str | Path = False) -> TrainResult:
        """Run to the end; the model then has the best weights (the last ones without evaluation).

        Args:
            resume: True continues from the newest checkpoint in ``output_dir`` (and begins anew if there is none); a
                folder continues from that checkpoint.

        Raises:
            FileExistsError: ``output_dir`` has results of another run, and ``resume`` is False.
            NonFiniteLoss: the loss or gradient of a batch is not finite; the message names the batch.
            TrainingInterrupted: SIGINT (Ctrl-C) or SIGTERM came; a checkpoint was written first.
        """
        started = time.perf_counter()
        checkpoint = self._find_checkpoint(resume)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        remove_partial_files(self.output_dir)
        self._began = started
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            if self.args.gradient_checkpointing:
                stack.enter_context(gradient_checkpointing(encoder_layers(self.model)))
            try:
                self._run(checkpoint)
            finally:
                self._call("on_train_end")
        self.model.eval()
        self._write_history()
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
        """Loss and metrics of the model as it is.

        Args:
            examples: as in the constructor; None for the evaluation examples.
        """
        if examples is None and self.feed.evaluation is None:
            raise ValueError("[Trainer] expected examples to evaluate on but got none. Give eval_examples.")
        self.model.eval()
        prepared = None if examples is None else self.feed.prepare(examples, "examples")
        return evaluate(self.model, self.objective, self.feed.eval_batches(prepared), self._forward)[0]

    def _find_checkpoint(self, resume: bool | str | Path) -> Path | None:
        if not isinstance(resume, bool):
            return Path(resume)
        present = list_checkpoints(self.output_dir)
        if resume:
            return present[-1][1] if present else None
        if present or any((self.output_dir / name).exists() for name in ("best_model", "final_model", BEST_STATE)):
            raise FileExistsError(
                f"[train] {self.output_dir} has results of another run. Choose another folder, remove it, or resume."
            )
        return None

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

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _run(self, path: Path | None) -> None:
        checkpoint = load_checkpoint(path, self.args, self.feed.fingerprint()) if path else None
        if checkpoint:
            self.state = checkpoint.state
            load_model_arrays(self.model, checkpoint.model, "resume")
        write_json(self.output_dir / "training_args.json", self.args.to_dict())
        mx.eval(self.model.parameters())
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
        self.is_frozen = apply_freeze(self.model, phase.freeze)
        if self.is_frozen and args.cache_encoder:
            self.feed.cache(self.model.bert)
        else:
            self.feed.drop_cache()
        self.optimizer = GroupedOptimizer(parameter_groups(self.model, args), flat_parameters(self.model))
        total = self.updates_per_epoch * phase.epochs
        warmup = math.ceil(args.warmup_ratio * total) if args.warmup_steps is None else args.warmup_steps
        power = 2.0 if args.schedule_power is None else args.schedule_power
        self.schedule = create_schedule(args.schedule, total, warmup, self.updates_per_epoch, power)
        self.step = TrainingStep(self.model, self.objective, self.optimizer, args)

    def _epoch(self, phase: Phase) -> None:
        state, size = self.state, self.args.gradient_accumulation_steps
        batches = self.feed.sampler.batches(state.passes)
        groups = [batches[start : start + size] for start in range(0, len(batches), size)]
        self._train_mode()
        ready = self.feed.collated(groups[state.update]) if state.update < len(groups) else None
        while state.update < len(groups):
            group = groups[state.update]
            self.optimizer.set_factor(self.schedule(state.phase_step))
            seeds = [(self.args.seed << 32) + state.micro_step + number for number in range(len(group))]
            losses, weights, norm = self.step(ready, seeds)
            self.step.start(losses, weights, norm)
            state.update += 1
            state.step += 1
            state.phase_step += 1
            state.micro_step += len(group)
            self._pending.append((state.step, state.passes, group, losses, weights, norm))
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
        if self.args.save_every == "epoch" or self._is_due(self.args.save_every):
            self._save_checkpoint()
        self._stop_if_asked()

    def _between_updates(self) -> None:
        if self._is_due(self.args.eval_every):
            self._read_losses()
            self._evaluate(epoch=self.state.passes + self.state.update / self.updates_per_epoch)
            self._train_mode()
        if self._is_due(self.args.save_every):
            self._save_checkpoint()
        self._stop_if_asked()

    def _end_of_epoch(self, phase: Phase) -> None:
        if self.args.eval_every == "epoch" or self._is_due(self.args.eval_every):
            self._evaluate(epoch=self.state.passes)
        else:
            self._record_epoch({"epoch": self.state.passes}, {})

    def _end_phase(self, phase: Phase, is_last: bool) -> None:
        state = self.state
        state.stopped_early = state.stopped_early or self._out_of_patience()
        if is_last:
            with self._averaged():
                self._save_model("final_model")
        if self.step.average:
            install(self.model, self.step.average)
        if state.best_step is not None:
            self._restore_best()
            if is_last and not (self.output_dir / "best_model").exists():  # a kill fell between two renames
                self._save_model("best_model")
        state.phase, state.epoch, state.update, state.phase_step = state.phase + 1, 0, 0, 0
        state.stale, state.patience_value = 0, None
        if is_last:
            (self.output_dir / BEST_STATE).unlink(missing_ok=True)

    def _is_due(self, every: str) -> bool:
        return every.isdecimal() and self.state.step % int(every) == 0

    def _stop_if_asked(self) -> None:
        if self._stop:
            raise TrainingInterrupted(self._save_checkpoint())

    def _train_mode(self) -> None:
        self.model.train()
        if self.is_frozen:  # a frozen encoder has no dropout: its outputs are what can be cached
            self.model.bert.eval()

    # --- reading and recording ----------------------------------------------------------------------------------------

    def _read_losses(self) -> None:
        """Wait for the losses since the last reading, check them and record their mean."""
        if not self._pending:
            return
        values = [(np.array(mx.stack(losses)), np.array(mx.stack(weights)), norm.item())
                  for *_, losses, weights, norm in self._pending]  # fmt: skip
        for (step, passes, group, *_), (losses, _, norm) in zip(self._pending, values, strict=True):
            if not np.isfinite(losses).all():
                batch = group[int(np.argmax(~np.isfinite(losses)))]
                raise self._not_finite("loss", losses.sum(), step, passes, batch)
            if not math.isfinite(norm):
                raise self._not_finite("gradient", norm, step, passes, group[0])
        losses = np.concatenate([losses for losses, _, _ in values]).astype(np.float64)
        weights = np.concatenate([weights for _, weights, _ in values]).astype(np.float64)
        self.state.epoch_loss += float((losses * weights).sum())
        self.state.epoch_weight += float(weights.sum())
        record = {
            "step": self.state.step,
            "loss": float((losses * weights).sum() / max(weights.sum(), 1e-9)),
            "grad_norm": float(np.mean([norm for *_, norm in values])),
            "learning_rate": self._learning_rate(),
        }
        self._pending = []
        self.state.history["steps"].append(record)
        self._call("on_log", record)

    def _not_finite(self, what: str, value: float, step: int, passes: int, batch: BatchIndices) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"[train] the {what} of update {step} (epoch {passes + 1}) is {value}. Its batch: "
            f"{self.feed.name_of(batch)}. Check those labels and texts, or lower learning_rate."
        )

    def _learning_rate(self) -> float:
        """The largest rate of the last update."""
        factor = self.schedule(max(0, self.state.phase_step - 1))
        return factor * max(group.learning_rate for group in self.optimizer.groups)

    def _measure(self) -> dict[str, float]:
        """What an evaluation during the run finds, by name."""
        return evaluate(self.model, self.objective, self.feed.eval_batches(), self._forward)[0]

    def _evaluate(self, epoch: float) -> None:
        if self.feed.evaluation is None and not self.measures_without_examples:
            self._record_epoch({"epoch": epoch}, {})
            return
        state = self.state
        self.model.eval()
        with self._averaged():
            metrics = self._measure()
            name = self._metric_name(metrics)
            value = metrics[name]
            sign = 1.0 if self._greater_is_better(name) else -1.0
            is_best = math.isfinite(value) and (state.best_value is None or sign * (value - state.best_value) > 0)
            if is_best:
                state.best_value, state.best_step, state.best_metrics = value, state.step, metrics
                self._save_best()
        reference = state.patience_value
        if reference is None or sign * (value - reference) > self.args.min_delta:
            state.patience_value, state.stale = value, 0
        else:
            state.stale += 1
        self._record_epoch({"epoch": epoch, "is_best": is_best}, metrics)

    def _record_epoch(self, record: dict[str, Any], metrics: dict[str, float]) -> None:
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
        self._write_history()
        self._call("on_evaluate", record)

    def _write_history(self) -> None:
        write_json(self.output_dir / self.history_file, self.state.history)

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

    def _save_checkpoint(self) -> Path:
        self._read_losses()
        path = save_checkpoint(
            self.output_dir,
            self.state,
            self.args,
            self.model,
            self.optimizer.state_arrays(),
            self.step.average or None,
            self.feed.fingerprint(),
            self._learning_rate(),
        )
        self._call("on_checkpoint", path)
        return path

    def _save_best(self) -> None:
        write_safetensors(self.output_dir / BEST_STATE, entries_of(model_arrays(self.model)))
        self._save_model("best_model")

    def _restore_best(self) -> None:
        if not (self.output_dir / BEST_STATE).is_file():
            raise FileExistsError(
                f"[resume] the run in {self.output_dir} is complete: see best_model and final_model. Nothing to do."
            )
        best = mx.load(str(self.output_dir / BEST_STATE), format="safetensors")
        load_model_arrays(self.model, best, "best model")
        mx.eval(self.model.parameters())

    def _save_model(self, name: str) -> None:
        """Write a folder that ``from_pretrained`` loads, with ``metadata.json`` about the run."""
        state = self.state
        with new_folder(self.output_dir / name, overwrite=True) as folder:
            if hasattr(self.model, "save_pretrained"):
                with merged_lora(self.model):
                    self.model.save_pretrained(folder)
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(folder / "bert" if (folder / "bert").is_dir() else folder)
            else:
                write_safetensors(folder / WEIGHTS, entries_of(model_arrays(self.model)))
            metrics = state.best_metrics if name == "best_model" else (state.history["epochs"] or [{}])[-1]
            if self.adapters is not None:
                save_adapters(self.model, folder / "adapters", self.adapters)
            write_json(folder / METADATA, {"step": state.step, "metrics": metrics, "args": self.args.to_dict()})

    def _call(self, hook: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *values)
