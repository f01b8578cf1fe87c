"""Training: samples and tokens a second and memory of each way to train, on the same texts in the same run.

Every round measures the machine first, then runs each way once over the same batches (padding and stacking included,
writing checkpoints not); the median counts. ``GFLOP/s`` is of what the way must compute: three times a forward pass
to train everything, twice for adapters (no gradient of the weights), once for a frozen encoder. What gradient
checkpointing computes again does not count.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks import report, roofline
from benchmarks.corpus import ragged_texts
from benchmarks.models import find_model, label
from benchmarks.timing import ratios, seconds
from heads import HeadConfig
from mlx_bert.core import BertCore
from mlx_bert.data.collate import Arrays, token_count, tokenize_examples
from mlx_bert.data.readers import Example
from mlx_bert.model import BertWithHead
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.feed import Feed, default_collator
from mlx_bert.training.freezing import apply_freeze
from mlx_bert.training.lora import apply_lora, config_from_args
from mlx_bert.training.objective import HeadObjective
from mlx_bert.training.optimizers import GroupedOptimizer, parameter_groups
from mlx_bert.training.recompute import encoder_layers, gradient_checkpointing
from mlx_bert.training.step import TrainingStep, compiles, flat_parameters

CLASSES = 10
CLOSE = 1e-3  # most that the first logits of another engine may differ, relative to their length
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, gradient checkpointing": {"gradient_checkpointing": True},
    "full, bfloat16": {"dtype": "bfloat16"},
    "LoRA": {"lora": "*.attention.*"},
    "frozen": {"freeze": "backbone", "cache_encoder": False},
    "frozen, cached": {"freeze": "backbone"},
}
PASS = "frozen, the caching pass"
TORCH = "torch, full"


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--texts", type=int, default=128, metavar="N", help="texts of an epoch (default: 128)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts of an update (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds, the median counts (default: 5)")
    parser.add_argument(
        "--epochs", type=int, default=5, metavar="N", help="epochs served by a caching pass (default: 5)"
    )
    layers = WAYS["LoRA"]["lora"]
    parser.add_argument(
        "--lora", default=layers, metavar="PATTERNS", help="layers with adapters (default: %(default)s)"
    )
    parser.add_argument("--peer", choices=("torch", "none"), help="whom to compare with (default: torch, if installed)")


@dataclass
class Way:
    """One way to train: an epoch of it, the operations that it needs for that, the memory that it took."""

    epoch: Callable[[], None]
    operations: int | None
    peak_bytes: int | None = None


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    for name in ("texts", "batch_size", "rounds", "epochs"):
        if getattr(args, name) < 1:
            raise ValueError(f"[benchmarks] expected --{name.replace('_', '-')} of at least 1.")
    folder, dtype = find_model(args.model), args.dtype or "float32"
    if dtype == "float16":
        raise ValueError("[benchmarks] expected --dtype float32 or bfloat16 for training but got float16.")
    tokenizer, core = Tokenizer.from_pretrained(folder), BertCore.from_pretrained(folder)
    examples = labelled(tokenizer, args.texts, core.config.max_tokens)
    lengths = [token_count(example) for example in examples]
    forward = roofline.model_flops(core, lengths)
    ways: dict[str, Way] = {}
    for name, options in chosen_ways(dtype, args.lora).items():
        ways |= build(name, folder, tokenizer, examples, args.batch_size, forward, options)
    note = None
    if args.peer != "none" and dtype == "float32":
        try:
            ways[TORCH] = torch_way(folder, tokenizer, examples, args.batch_size, forward)
            note = torch_settings()
        except ImportError:
            if args.peer:
                raise
            note = "torch and transformers are not installed: compared with ourselves only."
    taken: dict[str, list[float]] = {name: [] for name in ways}
    peaks = []
    for number in range(args.rounds):
        peaks.append(roofline.matmul_peak(core.config))
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            taken[name].append(seconds(ways[name].epoch))
    rows = [row(name, ways[name], taken[name], taken["full"], lengths, peaks) for name in ways]
    if PASS in ways:
        rows.append(with_pass(taken, lengths, args.epochs))
    machine = replace(roofline.measure(core.config, count=2), matmul_flops=max(peaks))
    settings = {"model": label(args.model), "dtype": dtype, "texts": args.texts, "tokens": sum(lengths)}
    settings |= {"batch_size": args.batch_size, "rounds": args.rounds}
    return report.build("train", settings, rows, roofline=asdict(machine), note=note)


def labelled(tokenizer: Tokenizer, count: int, bound: int) -> list[Example]:
    """Tokenised texts of many lengths, each with a made-up class."""
    classes = np.random.default_rng(0).integers(0, CLASSES, count)
    longest = min(bound, tokenizer.max_length or bound)
    texts = [{"text": text, "labels": int(kind)} for text, kind in zip(ragged_texts(count), classes, strict=True)]
    return tokenize_examples(texts, tokenizer, longest)


def chosen_ways(dtype: str, lora: str) -> dict[str, dict[str, Any]]:
    """Settings by way; bfloat16 as a way of its own only where it is fast, on a GPU."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return {
        name: {"dtype": dtype, **options, **({"lora": lora} if name == "LoRA" else {})}
        for name, options in WAYS.items()
        if "dtype" not in options or (on_gpu and dtype == "float32")
    }


def new_model(folder: str) -> BertWithHead:
    """The encoder with a linear head on the mean of its tokens; always the same weights."""
    core = BertCore.from_pretrained(folder)
    mx.random.seed(0)
    head = HeadConfig("multiclass_classification", core.get_hidden_size(), CLASSES, pooling_type="mean")
    model = BertWithHead(core, head)
    model.set_dtype(mx.float32)
    return model


def build(
    name: str,
    folder: str,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int,
    forward: int,
    options: dict[str, Any],
) -> dict[str, Way]:
    """A way after a first epoch that does not count; two of them where outputs are cached: the pass and the rest."""
    mx.clear_cache()
    before = mx.get_active_memory()
    args = TrainingArgs(batch_size=batch_size, learning_rate=1e-6, progress=False, **options)
    model = new_model(folder)
    if adapters := config_from_args(args):
        apply_lora(model, adapters)
    frozen = apply_freeze(model, args.freeze)
    collate = default_collator(model, tokenizer, exact=not compiles(args))
    feed = Feed(args, examples, None, None, collate)
    optimizer = GroupedOptimizer(parameter_groups(model, args), flat_parameters(model))
    step = TrainingStep(model, HeadObjective(), optimizer, args)
    cached = frozen and args.cache_encoder

    def run() -> None:
        model.train()
        if frozen:
            model.bert.eval()
        layers = encoder_layers(model)
        with gradient_checkpointing(layers) if args.gradient_checkpointing else nullcontext():
            for number, batch in enumerate(feed.sampler.batches(0)):
                step.evaluate(*step(feed.collated([batch]), [number]))

    ways = {}
    if cached:
        mx.reset_peak_memory()
        feed.cache(model.bert)
        if not feed.is_cached:
            raise ValueError("[benchmarks] expected outputs that fit the cache. Take fewer --texts.")
        ways[PASS] = Way(lambda: feed.cache(model.bert), forward, mx.get_peak_memory() - before)
    mx.reset_peak_memory()
    run()
    times = None if cached else 1 if frozen else 2 if adapters else 3
    return {**ways, name: Way(run, times and times * forward, mx.get_peak_memory() - before)}


def torch_way(folder: str, tokenizer: Tokenizer, examples: Sequence[Example], batch_size: int, forward: int) -> Way:
    """The same with transformers: weights, head, batches, dropout, AdamW, clipping; on MPS where we run on a GPU.

    Raises:
        ImportError: torch or transformers is not installed.
        ValueError: its first logits are not ours.
    """
    import torch
    from transformers import AutoModel

    place = "mps" if mx.default_device().type == mx.DeviceType.gpu and torch.backends.mps.is_available() else "cpu"
    ours = new_model(folder).eval()
    args = TrainingArgs(batch_size=batch_size, learning_rate=1e-6, progress=False)
    feed = Feed(args, examples, None, None, default_collator(ours, tokenizer, exact=True))
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    head = torch.nn.Linear(ours.bert.get_hidden_size(), CLASSES)
    for mine, theirs in ((ours.head.output.weight, head.weight), (ours.head.output.bias, head.bias)):
        theirs.data = torch.from_numpy(np.array(mine))
    model = torch.nn.ModuleList([encoder, head]).to(place)
    kept = [p for name, p in model.named_parameters() if "pooler" not in name]
    groups = [
        {"params": [p for p in kept if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in kept if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)

    def logits_of(batch: Arrays) -> Any:
        arrays = {name: torch.from_numpy(np.array(array)).to(place) for name, array in batch.items()}
        mask = arrays.setdefault("attention_mask", torch.ones_like(arrays["input_ids"], dtype=torch.bool))
        states = encoder(**arrays).last_hidden_state
        return head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def run() -> None:
        model.train()
        for number, batch in enumerate(feed.sampler.batches(0)):
            torch.manual_seed(number)
            optimizer.zero_grad()
            (arrays,) = feed.collated([batch])
            labels = torch.from_numpy(np.array(arrays.pop("labels"))).long().to(place)
            loss = torch.nn.functional.cross_entropy(logits_of(arrays), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(kept, args.max_grad_norm)
            optimizer.step()
            loss.item()

    (first,) = feed.collated(feed.sampler.batches(0)[:1])
    del first["labels"]
    model.eval()
    with torch.no_grad():
        theirs = logits_of(first).cpu().numpy()
    difference = np.linalg.norm(np.array(HeadObjective().forward(ours, first)["logits"]) - theirs)
    if difference > CLOSE * np.linalg.norm(theirs):
        share = difference / np.linalg.norm(theirs)
        raise ValueError(f"[benchmarks] expected torch's first logits to be ours but they differ by {share:.1%}.")
    run()
    return Way(run, 3 * forward)


def torch_settings() -> str:
    """One line about how torch computes."""
    import torch

    return f"torch {torch.__version__} with {torch.get_num_threads()} CPU threads; its memory is not measured."


def row(
    name: str,
    way: Way,
    taken: Sequence[float],
    full: Sequence[float],
    lengths: Sequence[int],
    peaks: Sequence[float],
) -> dict[str, Any]:
    """A way's row.

    Raises:
        ValueError: more operations a second than the best matrix product of all rounds.
    """
    middle = statistics.median(taken)
    shares = None
    if way.operations is not None:
        roofline.utilisation(way.operations, min(taken), max(peaks))
        shares = statistics.median(way.operations / each / peak for each, peak in zip(taken, peaks, strict=True))
    against = ratios(full, taken)
    return {
        "what": name,
        "seconds": middle,
        "samples/s": len(lengths) / middle,
        "tokens/s": sum(lengths) / middle,
        "times full": against["median"],
        "least": against["min"],
        "most": against["max"],
        "GFLOP/s": way.operations and way.operations / middle / 1e9,
        "of peak": shares,
        "peak MB": way.peak_bytes and way.peak_bytes / 1e6,
    }


def with_pass(taken: dict[str, list[float]], lengths: Sequence[int], epochs: int) -> dict[str, Any]:
    """A run of some epochs on cached outputs, the pass that caches them included; seconds are those of an epoch."""
    each = [(first + epochs * rest) / epochs for first, rest in zip(taken[PASS], taken["frozen, cached"], strict=True)]
    name = f"frozen, cached, with the pass in {epochs} epochs"
    return row(name, Way(lambda: None, None), each, taken["full"], lengths, [])
