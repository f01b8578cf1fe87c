"""Reading back what a conversion wrote: every tensor, its values, and whether the model runs.

Dimensions: B batch, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx

from convert import task_heads
from convert.quantize import dequantized
from convert.tokenizer_files import TOKENIZER, read_fast
from convert.weights import open_weights
from heads import create_head
from mlx_bert.checkpoint import TensorEntry, load_strict, quantize_like
from mlx_bert.encoders.base import EncoderConfig, EncoderOutput

PROBES = (
    "A short sentence.",
    "The weather is lovely today, and nobody expected it after such a long week of rain.",
    "Transformers encode every token in the light of all others.",
    "No!",
)
MAX_PROBE_TOKENS = 32
LOGIT_TASKS = ("sequence_classification", "token_classification")


class Change(NamedTuple):
    """What a conversion changed in a model's outputs on the probe texts.

    Attributes:
        cosine: the smallest cosine between a probe's mean-pooled states before and after.
        logit: the largest change of a logit of the task head, or None without a head that is known.
    """

    cosine: float
    logit: float | None


def verify_weights(
    folder: Path, source: Mapping[str, TensorEntry], quantization: Mapping[str, Any] | None = None
) -> float:
    """Compare each tensor in ``folder`` with its source, one at a time.

    Args:
        folder: what was written.
        source: tensors by today's names, in the types that they have in the source.
        quantization: ``config.json["quantization"]`` of what was written.

    Returns:
        The largest relative error (Frobenius norm) of a quantised matrix; 0 without quantisation.

    Raises:
        ValueError: a tensor is missing, too many, misshapen, or differs from its source after the cast.
    """
    written = open_weights(folder)
    packed = {name.removesuffix(".scales") + ".weight" for name in written if name.endswith(".scales")}
    written = dequantized(written, quantization)
    if differing := written.keys() ^ source.keys():
        raise ValueError(f"[verify] the tensor {min(differing)!r} is in only one of source and result.")
    worst = 0.0
    for name, entry in source.items():
        result = written[name]
        if result.shape != entry.shape:
            raise ValueError(f"[verify] expected {name!r} to have shape {entry.shape} but got {result.shape}.")
        with mx.stream(mx.cpu):
            ours, theirs = result.load(), entry.load().astype(result.dtype)
            if name in packed:
                ours, theirs = ours.astype(mx.float32), theirs.astype(mx.float32)
                error = mx.linalg.norm(ours - theirs) / mx.maximum(mx.linalg.norm(theirs), 1e-12)
                worst = max(worst, error.item())
            elif not mx.array_equal(ours, theirs, equal_nan=True).item():
                raise ValueError(f"[verify] the values of {name!r} differ from the source's. Convert again.")
        del ours, theirs
        mx.clear_cache()
    if worst > 0.5:
        raise ValueError(f"[verify] a quantised matrix is {worst:.2f} off its source (relative). Use more bits.")
    return worst


def verify_outputs(
    folder: Path,
    architecture: ModuleType,
    config: Mapping[str, Any],
    source: Mapping[str, TensorEntry] | None = None,
) -> Change | None:
    """Run the written model on probe texts; with ``source``, also the source's weights in float32.

    Args:
        folder: what was written, with its tokenizer if it has one.
        architecture: the encoder's file.
        config: the written ``config.json``.
        source: tensors by today's names, to compare with.

    Returns:
        How the outputs of both differ, or None without ``source``.

    Raises:
        ValueError: the outputs are not finite.
    """
    input_ids, mask = probe_batch(folder, architecture.Config.from_dict(config))
    pooled, logits = _run(architecture, config, open_weights(folder).values(), input_ids, mask)
    if not mx.all(mx.isfinite(pooled)).item():
        raise ValueError("[verify] the model's outputs are not finite. Convert with --dtype float32 or bfloat16.")
    if source is None:
        return None
    plain = {key: value for key, value in config.items() if key != "quantization"}
    reference, wanted = _run(architecture, plain, source.values(), input_ids, mask, mx.float32)
    norms = mx.linalg.norm(pooled, axis=-1) * mx.linalg.norm(reference, axis=-1)
    cosine = mx.min(mx.sum(pooled * reference, axis=-1) / mx.maximum(norms, 1e-12)).item()
    return Change(cosine, None if wanted is None else mx.max(mx.abs(logits - wanted)).item())


def _run(
    architecture: ModuleType,
    config: Mapping[str, Any],
    entries: Iterable[TensorEntry],
    input_ids: mx.array,
    mask: mx.array,
    dtype: mx.Dtype | None = None,
) -> tuple[mx.array, mx.array | None]:
    """Mean of the real tokens' states, float32 ``(B, D)``; the logits of a head that reads one text, else None."""
    fitted = architecture.Config.from_dict(config)
    names = architecture.NAMES.of(fitted)
    by_name = {entry.name: entry for entry in entries}
    own, _ = names.split(by_name)
    with mx.stream(mx.cpu):  # float64 exists on the CPU only
        arrays = {name: _loadable(by_name[own[name]]) for name in own.keys() - fitted.unused_tensors}
        weights = names.to_memory(arrays)
    model = architecture.Model(fitted)
    if hasattr(model, "pooler") and not any(name.startswith("pooler.") for name in weights):
        model.pooler = None
    quantize_like(model, weights, config.get("quantization"), names.paths_in_file)
    load_strict(model, weights, dtype, where="verify")
    model.eval()
    output: EncoderOutput = model(input_ids, mask)
    states = output.last_hidden_state.astype(mx.float32)
    real = mask[..., None].astype(mx.float32)
    pooled = mx.sum(states * real, axis=1) / mx.sum(real, axis=1)
    logits = None
    head_config = task_heads.head_from_checkpoint(config, by_name.keys())
    if task_heads.task_of(config) in LOGIT_TASKS and head_config is not None:
        tensors = task_heads.head_tensors(config, by_name.keys())
        head = create_head(head_config)
        head.load_state_arrays(task_heads.head_weights(config, {name: _loadable(by_name[name]) for name in tensors}))
        logits = head.eval()(states, mask)["logits"].astype(mx.float32)
        if task_heads.task_of(config) == "token_classification":
            logits = logits * real
    mx.eval(pooled, logits)
    return pooled, logits


def _loadable(entry: TensorEntry) -> mx.array:
    array = entry.load()
    return array.astype(mx.float32) if array.dtype == mx.float64 else array


def probe_batch(folder: Path, config: EncoderConfig) -> tuple[mx.array, mx.array]:
    """Token ids and mask ``(B, L)`` of the probe texts, padded on the right; made-up ids without a tokenizer.

    Raises:
        ValueError: the tokenizer gives ids that the embedding table does not have.
    """
    made_up = [[(7 * row + 3 * place + 1) % config.vocab_size for place in range(4 + 5 * row)] for row in range(4)]
    rows = [row[: min(MAX_PROBE_TOKENS, config.max_tokens)] for row in _tokenise(folder) or made_up]
    largest = max(max(row) for row in rows)
    if largest >= config.vocab_size:
        raise ValueError(f"[verify] the tokenizer gives the id {largest}, but the vocabulary has {config.vocab_size}.")
    length = max(len(row) for row in rows)
    input_ids = mx.array([row + [0] * (length - len(row)) for row in rows])
    mask = mx.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return input_ids, mask


def _tokenise(folder: Path) -> list[list[int]] | None:
    path = folder / TOKENIZER
    rows = read_fast(path, PROBES) if path.is_file() else []
    return rows if rows and all(rows) else None
