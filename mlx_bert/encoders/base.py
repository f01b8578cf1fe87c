"""What every encoder shares: its config base, its output, its masks, its attention and its reversible name map.

Dimensions: B batch, L tokens, D hidden size, H attention heads, d = D / H.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import mlx.core as mx
import mlx.nn as nn

from mlx_bert.encoders import cpu
from mlx_bert.encoders.cpu_attention import trained_attention
from mlx_bert.encoders.cpu_trace import is_traced

# Activations by the names that config.json uses (transformers/activations.py).
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": cpu.gelu,
    "gelu_python": cpu.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_fast": nn.gelu_approx,
    "gelu_accurate": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "gelu_python_tanh": nn.gelu_approx,
    "quick_gelu": nn.gelu_fast_approx,
    "relu": nn.relu,
    "relu2": nn.relu2,
    "relu6": nn.relu6,
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": nn.mish,
    "hardswish": nn.hardswish,
    "leaky_relu": nn.leaky_relu,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
    "linear": lambda x: x,
}


class EncoderOutput(NamedTuple):
    """What an encoder returns.

    Attributes:
        last_hidden_state: ``(B, L, D)``.
        hidden_states: the embeddings and each layer's output, ``(B, L, D)`` each, on request.
        attentions: each layer's attention probabilities ``(B, H, L, L)``, on request.
        pooled: ``(B, D)`` from encoders that pool more than the first token's state, which takes a ``pooler``.
    """

    last_hidden_state: mx.array
    hidden_states: list[mx.array] | None = None
    attentions: list[mx.array] | None = None
    pooled: mx.array | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Base of each architecture's config. Fields are keys of ``config.json``; the checkpoint keeps the others."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    initializer_range: float = 0.02

    @classmethod
    def modernise(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A parsed ``config.json`` in the keys of this class, where checkpoints with other keys exist. Idempotent."""
        return dict(config)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read the fields from a parsed ``config.json``; keys that don't concern the encoder are passed over.

        Raises:
            ValueError: a key without a default is missing, or a value does not fit.
        """
        config = cls.modernise(config)
        known = {field.name: field for field in fields(cls)}
        missing = [name for name, field in known.items() if field.default is MISSING and name not in config]
        if missing:
            raise ValueError(f"[{cls.__module__}] config.json lacks {', '.join(missing)}. Is this a {cls.__name__}?")
        return cls(**{name: config[name] for name in known if name in config})

    @property
    def max_tokens(self) -> int:
        """The longest row that the position table holds."""
        return self.max_position_embeddings

    @property
    def output_size(self) -> int:
        """Width ``D`` of the hidden states that come out, where it is not ``hidden_size``."""
        return self.hidden_size

    @property
    def unused_tensors(self) -> frozenset[str]:
        """Names on disk, without prefix, of tensors that a checkpoint may carry and this config does not use."""
        return frozenset()

    def to_dict(self) -> dict[str, Any]:
        """The fields as ``config.json`` spells them."""
        return asdict(self)

    def saved(self) -> dict[str, Any]:
        """The fields as they describe weights that were loaded under this config and are now written."""
        return self.to_dict()

    def __post_init__(self) -> None:
        where = f"[{self.model_type}]"
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{where} expected {name} to be a positive integer but got {value!r}. Check config.json."
                )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{where} expected hidden_size to be a multiple of num_attention_heads but got {self.hidden_size} "
                f"and {self.num_attention_heads}. Check config.json."
            )

    def require(self, key: str, *supported: Any) -> None:
        """Refuse a config value that this architecture's file does not implement."""
        if getattr(self, key) not in supported:
            wanted = " or ".join(repr(value) for value in supported)
            raise ValueError(
                f"[{self.model_type}] expected {key} to be {wanted} but got {getattr(self, key)!r}. "
                "This variant of the architecture is not supported."
            )


def activation(name: str) -> Callable[[mx.array], mx.array]:
    """The activation function that a config names."""
    if name not in ACTIVATIONS:
        raise ValueError(f"[encoders] unknown activation {name!r}. Known: {', '.join(sorted(ACTIVATIONS))}.")
    return ACTIVATIONS[name]


def check_inputs(
    config: EncoderConfig, input_ids: mx.array, attention_mask: mx.array | None, bounded: bool = True
) -> None:
    """Refuse ids of the wrong rank, empty or over-long rows and a mask of another shape, from shapes alone.

    An embedding look-up outside its table gives garbage without an error in MLX, hence the check on the length;
    ``bounded=False`` is for encoders without such a table.
    """
    where = f"[{config.model_type}]"
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(f"{where} expected input_ids of shape (B, L), neither 0, but got {input_ids.shape}.")
    if not mx.issubdtype(input_ids.dtype, mx.integer):
        raise ValueError(f"{where} expected integer input_ids but got {input_ids.dtype}. Tokenise the text first.")
    if bounded and input_ids.shape[1] > config.max_tokens:
        raise ValueError(
            f"{where} expected at most {config.max_tokens} tokens a row but got {input_ids.shape[1]}. "
            "Truncate the input (max_length)."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"{where} expected attention_mask of shape {input_ids.shape} but got {attention_mask.shape}. "
            "It has one entry per token: 1 for a real one, 0 for padding."
        )


def key_padding_mask(attention_mask: mx.array | None) -> mx.array | None:
    """The boolean mask that attention takes, built once per batch.

    Args:
        attention_mask: ``(B, L)``, non-zero for real tokens, or None when nothing is padded.

    Returns:
        Boolean ``(B, 1, 1, L)``, True where attention is allowed, or None.
    """
    if attention_mask is None:
        return None
    return open_blind_rows(attention_mask.astype(mx.bool_)[:, None, None, :])


def open_blind_rows(mask: mx.array) -> mx.array:
    """Let a query that may see nothing see everything: its output means nothing, but stays finite."""
    return mask | ~mx.any(mask, axis=-1, keepdims=True)


def masked_bias(bias: mx.array, mask: mx.array | None) -> mx.array:
    """One array to add to attention scores: a bias where attention is allowed, a very low number elsewhere.

    Args:
        bias: ``(B or 1, H, L, L)`` in the type of the hidden states.
        mask: boolean, True where attention is allowed, broadcast to ``(B, H, L, L)``; or None.
    """
    return bias if mask is None else mx.where(mask, bias, mx.finfo(bias.dtype).min)


def attend(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    mask: mx.array | None,
    dropout: float = 0.0,
    return_weights: bool = False,
    scale: float | None = None,
) -> tuple[mx.array, mx.array | None]:
    """Scaled dot-product attention (Vaswani et al. 2017), fused unless the probabilities themselves are needed.

    Args:
        query, key, value: ``(B, H, L, d)``; keys and values may have fewer heads, each shared by several queries'.
        mask: boolean, True where attention is allowed, broadcast to ``(B, H, L, L)``; or None; or what
            :func:`masked_bias` gives.
        dropout: probability of dropping an attention probability; 0 outside training.
        return_weights: also return the probabilities.
        scale: factor on ``query @ key``; None for ``1 / sqrt(d)``.

    Returns:
        The output ``(B, L, H * d)``, and the probabilities ``(B, H, L, L)`` or None.
    """
    B, _, L, d = query.shape
    scale = 1.0 / math.sqrt(d) if scale is None else scale
    weights = None
    if cpu.suits(query) and is_traced() and not return_weights:
        output = trained_attention(query, key, value, mask, scale, dropout)
    elif return_weights or dropout > 0:
        if (shared_by := query.shape[1] // key.shape[1]) > 1:
            key, value = mx.repeat(key, shared_by, axis=1), mx.repeat(value, shared_by, axis=1)
        scores = (query * scale) @ key.swapaxes(-1, -2)
        if mask is not None:
            is_boolean = mask.dtype == mx.bool_
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min) if is_boolean else scores + mask
        weights = mx.softmax(scores, axis=-1, precise=True)
        kept = weights
        if dropout > 0:
            kept = weights * mx.random.bernoulli(1 - dropout, weights.shape) * (1 / (1 - dropout))
        output = kept @ value
    elif cpu.suits(query):
        output = cpu.attention(query, key, value, mask, scale)
    else:
        output = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)
    return output.transpose(0, 2, 1, 3).reshape(B, L, -1), weights if return_weights else None


class NameMap:
    """Reversible map between the names on disk (Hugging Face's) and the names in memory.

    The table goes from a module's path in memory to its path on disk. ``{n}`` stands for a layer number, ``{m}`` for a
    number within layer ``n``. Several paths on disk mean that the file keeps apart what memory holds as one,
    concatenated along the first axis (q, k and v).

    Args:
        prefix: what task checkpoints put before the encoder's names, such as ``"bert."``.
        table: module path in memory -> module path or paths on disk.
        older: the same for another spelling, from the time when the checkpoints came with code of their own. It is
            read, never written. A module of ``table`` that is spelled alike need not be repeated.
        older_prefix: the prefix that goes with it.
        rows: for fused modules whose parts differ in size: config -> {module path in memory: rows of each part}.
        prepare: turns tensors as in the file into tensors that the tables know: (weights, config) -> weights.
    """

    def __init__(
        self,
        prefix: str,
        table: Mapping[str, str | tuple[str, ...]],
        older: Mapping[str, str | tuple[str, ...]] | None = None,
        older_prefix: str | None = None,
        rows: Callable[[Any], Mapping[str, tuple[int, ...]]] | None = None,
        prepare: Callable[[dict[str, mx.array], Any], dict[str, mx.array]] | None = None,
    ) -> None:
        self.prefix = prefix
        self.table = {memory: (disk,) if isinstance(disk, str) else disk for memory, disk in table.items()}
        self.older = {memory: (disk,) if isinstance(disk, str) else disk for memory, disk in (older or {}).items()}
        self._prefixes = (prefix,) if older_prefix is None else (prefix, older_prefix)
        self._from_disk = [
            (_pattern(disk), memory, disks)
            for memory, disks in [*self.table.items(), *self.older.items()]
            for disk in disks
        ]
        self._from_memory = [(_pattern(memory), memory) for memory in self.table]
        self._roots = {disk.split(".")[0] for _, _, disks in self._from_disk for disk in disks}
        self._rows, self._prepare, self._config = rows, prepare, None

    def of(self, config: Any) -> Self:
        """This map for the tensors of one config, which settles the sizes of unequal parts."""
        bound = copy.copy(self)
        bound._config = config
        return bound

    def split(self, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Tell an encoder's tensors from the others (heads) in a checkpoint of a base or of a task model.

        Returns:
            The encoder's names, from the name without prefix to the name in the file; and all other names.
        """
        names = list(names)
        for prefix in self._prefixes:
            if own := {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}:
                break
        else:
            own = {name: name for name in names if name.split(".")[0] in self._roots}
        taken = set(own.values())
        return own, [name for name in names if name not in taken]

    def _locate(self, name: str) -> tuple[str, tuple[str, ...], str, str] | None:
        """Disk name -> (memory module, all disk modules it is made of, this one, tensor suffix)."""
        path, _, suffix = name.rpartition(".")
        for pattern, memory, disks in self._from_disk:
            if match := pattern.fullmatch(path):
                numbers = match.groupdict()
                return memory.format(**numbers), tuple(disk.format(**numbers) for disk in disks), path, suffix
        return None

    def _template(self, memory_path: str) -> tuple[str, dict[str, str]]:
        for pattern, template in self._from_memory:
            if match := pattern.fullmatch(memory_path):
                return template, match.groupdict()
        raise ValueError(f"[encoders] no name on disk is known for the module {memory_path!r}.")

    def disk_paths(self, memory_path: str) -> list[str]:
        """The module paths on disk (without prefix) of one module in memory."""
        template, numbers = self._template(memory_path)
        return [disk.format(**numbers) for disk in self.table[template]]

    def paths_in_file(self, memory_path: str) -> list[str]:
        """:meth:`disk_paths` as base and as task checkpoints spell them."""
        paths = self.disk_paths(memory_path)
        return [*paths, *(f"{self.prefix}{path}" for path in paths)]

    def to_memory(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Rename and fuse. Empties ``weights``, so that a tensor lives only once.

        Raises:
            ValueError: a name that this architecture does not have, or a fused part that is missing.
        """
        if self._prepare is not None:
            weights = self._prepare(weights, self._bound_config())
        found: dict[tuple[str, str, tuple[str, ...]], dict[str, mx.array]] = {}
        for name in list(weights):
            place = self._locate(name)
            if place is None:
                raise ValueError(f"[checkpoint] unexpected tensor {name!r}. The file does not match its config.json.")
            memory, disks, path, suffix = place
            found.setdefault((memory, suffix, disks), {})[path] = weights.pop(name)
        fused: dict[str, mx.array] = {}
        for memory, suffix, disks in list(found):
            parts = found.pop((memory, suffix, disks))
            if lacking := [f"{disk}.{suffix}" for disk in disks if disk not in parts]:
                raise ValueError(f"[checkpoint] missing tensors: {', '.join(lacking)}. The file is incomplete.")
            if f"{memory}.{suffix}" in fused:
                raise ValueError(f"[checkpoint] tensor {disks[0]}.{suffix} comes twice, in two spellings.")
            ordered = [parts[disk] for disk in disks]
            fused[f"{memory}.{suffix}"] = ordered[0] if len(ordered) == 1 else mx.concatenate(ordered, axis=0)
        return fused

    def to_disk(self, weights: Mapping[str, mx.array], prefix: bool = False) -> dict[str, mx.array]:
        """The inverse of :meth:`to_memory`; with ``prefix`` the names get the task checkpoints' prefix."""
        rows = {} if self._rows is None else self._rows(self._bound_config())
        result: dict[str, mx.array] = {}
        for name, array in weights.items():
            path, _, suffix = name.rpartition(".")
            template, numbers = self._template(path)
            disks = [disk.format(**numbers) for disk in self.table[template]]
            parts = [array]
            if template in rows:
                parts = mx.split(array, list(itertools.accumulate(rows[template]))[:-1])
            elif len(disks) > 1:
                parts = mx.split(array, len(disks))
            for disk, part in zip(disks, parts, strict=True):
                result[f"{self.prefix if prefix else ''}{disk}.{suffix}"] = part
        return result

    def to_native(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Tensors in any spelling -> the spelling that :meth:`to_disk` writes, all lazily. Empties ``weights``."""
        return self.to_disk(self.to_memory(weights))

    def _bound_config(self) -> Any:
        if self._config is None:
            raise ValueError("[encoders] this name map depends on the config. Use NAMES.of(config).")
        return self._config


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template)))
