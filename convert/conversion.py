"""The way of a checkpoint from the Hub to a folder of ours: fetch, read, check, cast, quantise, write, verify.

What is written in a floating type is still a transformers and sentence-transformers folder: tensors keep Hugging
Face's names (old spellings become today's), ``config.json`` keeps its keys.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from convert import hub
from convert.architecture import check_config, check_tensors
from convert.modules import copy_settings, read_modules, write_modules
from convert.paths import inside
from convert.quantize import Quantization, dequantized, matrices_to_quantize, quantize_entry
from convert.task_heads import todays_class
from convert.tokenizer_files import write_tokenizer
from convert.verify import verify_outputs, verify_weights
from convert.weights import open_weights
from mlx_bert.checkpoint import (
    CONFIG,
    WEIGHTS,
    TensorEntry,
    float_dtype,
    new_folder,
    normalise_name,
    read_json,
    write_json,
    write_safetensors,
)

FLOAT16_MAX = 65504.0


@dataclass
class KindOfTensor:
    """A row of the table about a quantised result: how many tensors, their weights, and their bytes."""

    number: int = 0
    weights: int = 0
    before: int = 0
    after: int = 0

    def __str__(self) -> str:
        bits = 8 * self.after / max(self.weights, 1)
        return f"{self.number:6d}  {bits:15.2f}  {self.before / 1e6:9.2f} MB  {self.after / 1e6:9.2f} MB"


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        output: the new folder.
        model_type, dtype: of the result; ``dtype`` is that of the floating weights.
        tensors: number of tensors written.
        bytes_before, bytes_after: of all tensors, without the modules of sentence-transformers.
        weights: number of floating weights, for bits per weight.
        tokenizer: how it came there.
        modules: class names of a sentence-transformers folder.
        strangers: tensors that belong neither to the encoder nor to a known head; they were kept.
        quantization: how the encoder's matrices were quantised.
        left_floating: the encoder's matrices whose rows did not divide into its groups.
        verified: the result was read back and run.
        cosine, logit, error: with verification of a quantised result, see :mod:`convert.verify`.
        table: of a quantised result: tensors, bits per weight and bytes before and after, by kind of tensor.
    """

    output: Path
    model_type: str
    dtype: str
    tensors: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    weights: int = 0
    tokenizer: str = "none"
    modules: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    quantization: Quantization | None = None
    left_floating: list[str] = field(default_factory=list)
    verified: bool = False
    cosine: float | None = None
    logit: float | None = None
    error: float | None = None
    table: dict[str, KindOfTensor] = field(default_factory=dict)

    def __str__(self) -> str:
        q = self.quantization
        packed = f", quantised ({q.mode}, {q.bits} bits, groups of {q.group_size})" if q else ""
        lines = [
            f"{self.model_type}: {self.tensors} tensors, {self.dtype}{packed}",
            f"{self.bytes_before / 1e6:.1f} MB -> {self.bytes_after / 1e6:.1f} MB, "
            f"{8 * self.bytes_after / max(self.weights, 1):.2f} bits per weight",
            f"tokenizer: {self.tokenizer}",
        ]
        if self.table:
            lines += [f"  {'tensors':<16} number  bits per weight        before         after"]
            lines += [f"  {kind:<16} {row}" for kind, row in self.table.items()]
        if self.modules:
            lines.append(f"sentence-transformers modules: {', '.join(self.modules)}")
        if self.left_floating:
            lines.append(f"left floating, not divisible into groups: {len(self.left_floating)} matrices")
        if self.strangers:
            shown = ", ".join(self.strangers[:5]) + (" ..." if len(self.strangers) > 5 else "")
            lines.append(f"kept, though of no known use: {len(self.strangers)} tensors ({shown})")
        if self.verified:
            lines.append("verified: every tensor read back, outputs finite")
        if self.cosine is not None:
            logit = "" if self.logit is None else f"largest change of a logit {self.logit:.4f}, "
            lines.append(
                f"against the unquantised model: smallest cosine {self.cosine:.6f} on probe texts, {logit}"
                f"largest relative error of a matrix {self.error:.4f}"
            )
        return "\n".join([*lines, f"written to {self.output}"])


def default_output(source: str | Path) -> Path:
    """``mlx_<name>`` in the working folder."""
    return Path(f"mlx_{Path(str(source).rstrip('/')).expanduser().name}")


def convert_checkpoint(
    source: str | Path,
    output: str | Path | None = None,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    quantization: Quantization | Mapping[str, Any] | None = None,
    dequantize: bool = False,
    verify: bool = False,
    progress: bool = False,
) -> Report:
    """Convert a checkpoint. Memory stays at about two tensors, whatever the checkpoint's size (``verify`` loads it).

    Args:
        source: hub id, or folder in the format of transformers or sentence-transformers.
        output: the new folder; None for ``mlx_<name>``.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; None keeps each tensor's type (float64 becomes float32).
        revision: branch, tag or commit of a hub id.
        quantization: how to quantise the encoder's matrices; None leaves them floating.
        dequantize: turn the packed matrices of a quantised checkpoint into floating ones first.
        verify: read everything back and run the model before the folder gets its name.
        progress: show a progress bar on stderr.

    Raises:
        FileExistsError: ``output`` exists.
        FileNotFoundError: no such source, or files are missing.
        ValueError: an unsupported or damaged checkpoint, values too large for float16, or verification failed.
    """
    output = default_output(source) if output is None else Path(output).expanduser()
    target_dtype = float_dtype(dtype)
    if quantization is not None and not isinstance(quantization, Quantization):
        quantization = Quantization(**quantization)
    if output.exists():
        raise FileExistsError(f"[convert] {output} exists already. Choose another folder or remove it first.")
    folder = hub.fetch(source, revision)
    modules = read_modules(folder)
    root = inside(folder, modules[0].path) if modules else folder
    inside(root, CONFIG)
    config = read_json(root / CONFIG)
    architecture = check_config(config)
    config = architecture.Config.modernise(config)
    entries = todays_names(open_weights(root))
    bytes_before = sum(entry.nbytes for entry in entries.values())
    entries, config = _floating(entries, config, dequantize, target_dtype)
    parts = check_tensors(architecture, config, entries, always_rename=quantization is not None)
    entries = parts.entries
    if parts.renamed:  # transformers' own class reads it then, by its own keys
        saved = architecture.Config.from_dict(config).saved()
        config = {**architecture.Config.modernise(config), **saved, **todays_class(config)}
    if parts.reduced:
        warnings.warn("[convert] the adapters are left out: a quantised model has none.", stacklevel=2)

    def cast(entry: TensorEntry) -> TensorEntry:
        return cast_entry(entry, target_dtype)

    written = [cast(entry) for entry in entries.values()]
    config = {**config, **_dtype_keys(config, written)}
    if quantization is not None:
        quantization.warn_if_coarse()
        chosen, left = matrices_to_quantize(parts, quantization)
        config["quantization"] = _quantization_entry(quantization, chosen)
        written = _quantised(written, chosen, quantization)
    report = Report(output, config["model_type"], config["dtype"], strangers=parts.strangers)
    if quantization is not None:
        report.quantization, report.left_floating = quantization, left
        report.table = _table(entries, written, chosen)
    report.tensors, report.bytes_before = len(written), bytes_before
    report.bytes_after = sum(entry.nbytes for entry in written)
    report.weights = sum(_size(entry) for entry in entries.values() if mx.issubdtype(entry.dtype, mx.floating))

    with new_folder(output) as partial:
        write_json(partial / CONFIG, config)
        report.tokenizer = write_tokenizer(_tokenizer_root(folder, root), partial)
        copy_settings(root, partial)
        report.modules = write_modules(folder, partial, modules, cast)
        with tqdm(total=len(written), desc="writing", unit=" tensors", disable=not progress, leave=False) as bar:
            write_safetensors(partial / WEIGHTS, _counted(written, bar))
        if verify:
            report.error = verify_weights(partial, entries, config.get("quantization"))
            compare = entries if quantization is not None else None
            change = verify_outputs(partial, architecture, config, compare)
            report.cosine, report.logit = change or (None, None)
            report.verified = True
    return report


def cast_entry(entry: TensorEntry, dtype: mx.Dtype | None) -> TensorEntry:
    """The entry in another floating type; integers and booleans stay. Without a type, only float64 changes.

    The result's ``load`` raises ValueError for values that float16 does not hold.
    """
    if dtype is None:
        dtype = mx.float32 if entry.dtype == mx.float64 else entry.dtype
    if not mx.issubdtype(entry.dtype, mx.floating) or entry.dtype == dtype:
        return entry

    def load() -> mx.array:
        with mx.stream(mx.cpu):  # float64 exists on the CPU only, and reading happens there anyway
            array = entry.load()
            if dtype == mx.float16 and array.size and (largest := mx.max(mx.abs(array)).item()) > FLOAT16_MAX:
                raise ValueError(
                    f"[convert] {entry.name!r} holds {largest:.6g}, more than float16's {FLOAT16_MAX:.0f}. "
                    "Use --dtype bfloat16 or float32."
                )
            array = array.astype(dtype)
            mx.eval(array)
            return array

    return replace(entry, dtype=dtype, load=load)


def todays_names(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Old spellings (gamma, beta) become today's; buffers that are no weights (position_ids) go."""
    result: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        known = normalise_name(name)
        if known is None:
            continue
        if known in result:
            raise ValueError(f"[convert] tensor {known!r} comes twice, in an old and a new spelling. Choose one file.")
        result[known] = replace(entry, name=known)
    return result


def _floating(
    entries: dict[str, TensorEntry], config: dict[str, Any], dequantize: bool, dtype: mx.Dtype | None
) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """The tensors as floating ones: a checkpoint that is quantised already needs ``dequantize``."""
    packed = any(name.endswith(".scales") for name in entries)
    if dequantize and not packed:
        raise ValueError("[convert] --dequantize expects a quantised checkpoint, but this one is not. Leave it away.")
    if not packed:
        foreign = config.get("quantization_config")
        if isinstance(foreign, Mapping):
            method = foreign.get("quant_method", "an unknown method")
            raise ValueError(
                f"[convert] the key 'quantization_config' says that the weights are quantised with {method!r}, which "
                "is not supported. Choose the original checkpoint."
            )
        return entries, config
    if not dequantize:
        raise ValueError(
            "[convert] the checkpoint is quantised already. Load it as it is, or add --dequantize for floating weights."
        )
    entries = dequantized(entries, config.get("quantization"), dtype)
    return entries, {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}


def _dtype_keys(config: Mapping[str, Any], written: Sequence[TensorEntry]) -> dict[str, str]:
    """``dtype``, and ``torch_dtype`` where the config has it: the type of most floating weights."""
    sizes: dict[str, int] = {}
    for entry in written:
        if mx.issubdtype(entry.dtype, mx.floating):
            name = str(entry.dtype).removeprefix("mlx.core.")
            sizes[name] = sizes.get(name, 0) + _size(entry)
    most = max(sizes, key=sizes.__getitem__, default="float32")
    return {"dtype": most, **({"torch_dtype": most} if "torch_dtype" in config else {})}


def _size(entry: TensorEntry) -> int:
    return entry.nbytes // entry.dtype.size


def _quantization_entry(quantization: Quantization, chosen: Mapping[str, Quantization]) -> dict[str, Any]:
    """``config.json["quantization"]``, with an entry for each matrix that is quantised otherwise (as mlx-lm has it)."""
    common = quantization.to_dict()
    own = {name.removesuffix(".weight"): how.to_dict() for name, how in chosen.items() if how.to_dict() != common}
    return {**common, **own}


def _table(
    before: Mapping[str, TensorEntry], after: Sequence[TensorEntry], chosen: Mapping[str, Quantization]
) -> dict[str, KindOfTensor]:
    """What quantising did, by kind of tensor."""
    bytes_after: dict[str, int] = {}
    for entry in after:
        # scales and biases count to the matrix that they belong to
        name = entry.name if entry.name in before else f"{entry.name.rpartition('.')[0]}.weight"
        bytes_after[name] = bytes_after.get(name, 0) + entry.nbytes
    table: dict[str, KindOfTensor] = {}
    for name, entry in before.items():
        if not mx.issubdtype(entry.dtype, mx.floating):
            continue
        kind = "floating" if name not in chosen else f"{chosen[name].mode} {chosen[name].bits} bits"
        row = table.setdefault(kind, KindOfTensor())
        row.number += 1
        row.weights += _size(entry)
        row.before += entry.nbytes
        row.after += bytes_after[name]
    return table


def _quantised(
    written: list[TensorEntry], chosen: Mapping[str, Quantization], quantization: Quantization
) -> list[TensorEntry]:
    if not chosen:
        raise ValueError(
            f"[quantize] no matrix has rows that divide into groups of {quantization.group_size}. "
            "Choose a smaller --q-group-size."
        )
    return [
        piece
        for entry in written
        for piece in (quantize_entry(entry, chosen[entry.name]) if entry.name in chosen else [entry])
    ]


def _tokenizer_root(folder: Path, root: Path) -> Path:
    """Beside the Transformer, or in the root of an old sentence-transformers folder."""
    has_one = any((root / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    return root if has_one or root == folder else folder


def _counted(entries: Sequence[TensorEntry], bar: tqdm) -> list[TensorEntry]:
    """Entries that move a progress bar when they are loaded."""

    def count(load: Callable[[], mx.array]) -> mx.array:
        array = load()
        bar.update()
        return array

    return [replace(entry, load=lambda load=entry.load: count(load)) for entry in entries]
