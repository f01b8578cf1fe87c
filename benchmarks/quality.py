"""Every architecture and task head against transformers: the largest difference on a tiny model with redrawn weights.

The way is the user's: transformers saves a checkpoint, ``BertCore`` and ``BertWithHead`` load it. The reference runs in
float32; the rows show what float32, float16 and bfloat16 differ from it, over rows without padding, padded on the
right and on the left, at real positions only.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks import report
from convert import task_heads
from mlx_bert.core import BertCore
from mlx_bert.encoders import ENCODERS
from mlx_bert.model import BertWithHead

BASE = "encoder"
DTYPES = ("float32", "float16", "bfloat16")
LENGTH, BATCH, CHOICES = 12, 5, 3
TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
# What a tiny model of an architecture needs besides, so that what is its own shows.
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 24},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "electra": {"embedding_size": 24},
    "eurobert": {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "use_bidirectional_attention": True,
        "pad_token_id": 0,
    },
    "gte": {"pad_token_id": 0},
    "jina_embeddings_v3": {"pad_token_id": 0},
    "modernbert": {
        "local_attention": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "nomic_bert": {"pad_token_id": 0},
}
SUFFIXES = {
    "masked_lm": "ForMaskedLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
}


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--against", choices=("transformers",), default="transformers", help="the reference")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="these architectures alone (default: all)")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Compare and return the result.

    Raises:
        ImportError: torch or transformers is missing.
        ValueError: an unknown architecture.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError:
        raise ImportError("[quality] needs torch and transformers: pip install 'mlx-bert[test]'.") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    chosen = args.only or [name for name in ENCODERS if reference_class(name, BASE) is not None]
    rows = []
    for model_type in chosen:
        if model_type not in ENCODERS or reference_class(model_type, BASE) is None:
            raise ValueError(f"[quality] {model_type!r} is no architecture that transformers has too.")
        for task in (BASE, *task_heads.TASK_HEADS.get(model_type, {})):
            if reference_class(model_type, task) is not None:
                rows.append({"architecture": model_type, "task": task, **compare(model_type, task)})
    return report.build("quality", {"model": "tiny", "reference": f"transformers {transformers.__version__}"}, rows)


def reference_class(model_type: str, task: str) -> Any:
    """transformers' class for an architecture and a task, or None."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    stem = CONFIG_MAPPING[model_type].__name__.removesuffix("Config")
    names = [f"{stem}Model"] if task == BASE else [f"{stem}{SUFFIXES[task]}"]
    return next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)


def compare(model_type: str, task: str) -> dict[str, float | None]:
    """The largest difference for each type; None for a type that the architecture does not take."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    labels = {"num_labels": 3} if task.endswith("_classification") else {}
    config = CONFIG_MAPPING[model_type](**{**TINY, **OWN.get(model_type, {}), **labels})
    config._attn_implementation = "eager"
    reference = redraw(reference_class(model_type, task)(config))
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        for dtype in DTYPES:
            try:
                ours = (BertCore if task == BASE else BertWithHead).from_pretrained(Path(folder), dtype=dtype)
                differences = [_difference(ours, reference, task, side) for side in ("none", "right", "left")]
            except ValueError as error:
                if "float16" not in str(error):
                    raise
                differences = [None]  # an architecture that float16 cannot hold says so
            found[dtype] = None if None in differences else max(differences)
    return found


def _difference(ours: Any, reference: Any, task: str, side: str) -> float | None:
    import torch

    # A class that reads the first token reads padding in rows padded on the left: there is nothing to compare with.
    if side == "left" and task in ("sequence_classification", "multiple_choice"):
        return 0.0
    shape = (BATCH, CHOICES, LENGTH) if task == "multiple_choice" else (BATCH, LENGTH)
    ids = np.random.default_rng(0).integers(5, TINY["vocab_size"], shape)
    mask = np.ones(shape, dtype=np.int64)
    for row in range(1, BATCH if side != "none" else 0):
        mask[row, ..., slice(-row, None) if side == "right" else slice(0, row)] = 0
    ids = np.where(mask == 1, ids, reference.config.pad_token_id or 0)
    with torch.no_grad():
        wanted = reference(torch.tensor(ids), attention_mask=torch.tensor(mask))
    got = ours(mx.array(ids), mx.array(mask))
    names = ["last_hidden_state"] if task == BASE else ["logits"]
    if task == "question_answering":
        names = ["start_logits", "end_logits"]
    token_level = task not in ("sequence_classification", "multiple_choice")
    worst = 0.0
    for name in names:
        theirs, mine = wanted[name].float().numpy(), np.array(got[name].astype(mx.float32))
        if not np.isfinite(mine).all():
            return float("inf")
        difference = np.abs(theirs - mine)
        worst = max(worst, float(difference[mask == 1].max() if token_level else difference.max()))
    return worst


def redraw(model: Any, std: float = 0.3, seed: int = 0) -> Any:
    """Redraw all weights with a large spread: transformers' own 0.02 hides a wrong GELU or RoPE base."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            is_norm_weight = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(noise + 1 if is_norm_weight else noise)
    return model.eval()
