"""The parity check that every architecture shares (CONTRIBUTING.md, house rule 3)."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_bert.core import BertCore
from reference import redraw, to_mlx


def ragged_ids(batch: int, length: int, vocab: int, side: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and a mask: row r has ``length - r`` real tokens, or all with ``side="none"``."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, vocab, (batch, length))
    mask = np.ones((batch, length), dtype=np.int64)
    for row in range(batch):
        padding = 0 if side == "none" else row % (length - 1)
        if padding:
            mask[row, slice(-padding, None) if side == "right" else slice(0, padding)] = 0
    return ids, mask


@pytest.fixture
def assert_parity() -> Callable:
    """Compare hidden states, attentions and pooler of a transformers model with ours at 1e-4 in float32.

    Batch sizes 1, 2 and 7; right, left and no padding; only real positions are compared.
    """

    def check(reference: torch.nn.Module, length: int = 12, atol: float = 1e-4, **inputs: np.ndarray) -> BertCore:
        reference = redraw(reference)
        reference.set_attn_implementation("eager")
        config = reference.config
        core = BertCore(config.to_dict())
        core.load_weights_from(to_mlx(reference.state_dict()))
        core.eval()
        pad = config.pad_token_id or 0
        for batch in (1, 2, 7):
            for side in ("right", "left", "none"):
                ids, mask = ragged_ids(batch, length, config.vocab_size, side)
                ids = np.where(mask == 1, ids, pad)
                extra = {name: np.broadcast_to(value, ids.shape) for name, value in inputs.items()}
                tensors = {name: torch.tensor(value) for name, value in extra.items()}
                with torch.no_grad():
                    wanted = reference(
                        torch.tensor(ids),
                        attention_mask=torch.tensor(mask),
                        output_hidden_states=True,
                        output_attentions=True,
                        **tensors,
                    )
                arrays = {name: mx.array(value) for name, value in extra.items()}
                plain = core(mx.array(ids), None if side == "none" else mx.array(mask), **arrays)
                full = core(mx.array(ids), mx.array(mask), output_hidden_states=True, output_attentions=True, **arrays)
                real = mask.astype(bool)
                where = f"batch {batch}, padding {side}"
                for got in (plain, full):
                    difference = np.abs(np.array(got.last_hidden_state) - wanted.last_hidden_state.numpy())[real]
                    assert difference.max() < atol, where
                # ALBERT applies several layers in a group, each with a hidden state and attentions of its own.
                layers = core.get_num_layers() * getattr(config, "inner_group_num", 1)
                assert len(full.hidden_states) == len(wanted.hidden_states) == layers + 1
                for got, want in zip(full.hidden_states, wanted.hidden_states, strict=True):
                    # Between pre-norm layers the values are unbounded: one part in 100,000 is float32's share.
                    np.testing.assert_allclose(np.array(got)[real], want.numpy()[real], 1e-5, atol, err_msg=where)
                assert len(full.attentions) == layers
                for got, want in zip(full.attentions, wanted.attentions, strict=True):
                    rows = np.broadcast_to(real[:, None, :], want.shape[:3])
                    assert np.abs(np.array(got) - want.numpy())[rows].max() < atol, where
                if side != "left" and getattr(wanted, "pooler_output", None) is not None:
                    assert np.abs(np.array(full.pooler_output) - wanted.pooler_output.numpy()).max() < atol, where
        return core

    return check


@pytest.fixture
def assert_half_precision() -> Callable:
    """float16 and bfloat16 stay in their type and stay finite, also in a row of padding alone; padding never shows."""

    def check(
        config: dict, length: int = 12, dtypes: tuple[mx.Dtype, ...] = (mx.float16, mx.bfloat16, mx.float32)
    ) -> None:
        for dtype in dtypes:
            mx.random.seed(0)
            core = BertCore(config).eval()
            core.set_dtype(dtype)
            ids, mask = ragged_ids(4, length, core.config.vocab_size, "right")
            mask[3] = 0
            got = core(mx.array(ids), mx.array(mask))
            for array in (got.last_hidden_state, got.mean_pooled, got.max_pooled, got.cls_output, got.pooler_output):
                assert array.dtype == dtype
                assert mx.all(mx.isfinite(array)).item()
            other = np.where(mask == 1, ids, np.random.default_rng(9).integers(5, core.config.vocab_size, ids.shape))
            again = core(mx.array(other), mx.array(mask))
            real = mask.astype(bool)
            same = np.array(got.last_hidden_state.astype(mx.float32))[real]
            assert np.array_equal(same, np.array(again.last_hidden_state.astype(mx.float32))[real])

    return check
