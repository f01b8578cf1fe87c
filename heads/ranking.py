"""Learning to rank: a score per item, trained within lists.

Dimension key: B batch or lists, N items of a list, L tokens, D hidden size, F width after the projection.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.masks import as_boolean_mask, zero_padding
from heads.projection import NormedBlock

_LOSSES = {
    "listnet": losses.listnet_loss,
    "ranknet": losses.ranknet_loss,
    "lambdarank": losses.lambdarank_loss,
    "hinge": losses.pairwise_hinge_loss,
    "pointwise": losses.pointwise_ranking_loss,
}


class RankingHead(BaseKaggleHead):
    """`s = w . g(f) + b` over `temperature`, with `g` blocks of `LayerNorm(Dropout(relu(W x)))` of `scorer_sizes`.

    Input: `(B, D)` or `(B, L, D)`: one list of B items; `(B, N, L, D)` with mask `(B, N, L)`, or with
    `use_pooling=False` `(B, N, D)` with mask `(B, N)`: B lists of N items. An item without a real token is not there.
    Outputs: `scores` = `logits` `(B,)` or `(B, N)`, `rankings` (listnet: softmax of the scores; else ranks from 1),
    `predictions` (items in descending order, int32), and `item_mask` if there is a mask.
    Loss `ranking_loss`: "listnet" (Cao et al. 2007), "ranknet" (Burges et al. 2005), "lambdarank" (Burges et al. 2006),
    "hinge" (`margin`) or "pointwise" (squared error), within lists only.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "ranking_loss": "listnet",
        "temperature": 1.0,
        "scorer_sizes": [256, 256],
        "margin": 1.0,
    }

    @property
    def takes_groups(self) -> bool:
        """Whether an example is a list of items; the pointwise loss takes items one by one."""
        return self.option("ranking_loss") != "pointwise"

    def _fixed_output_size(self) -> int:
        return 1

    def _build_output_layer(self) -> None:
        sizes = [self.projection_output_size, *self.option("scorer_sizes")]
        self.scorer = [NormedBlock(*pair, dropout=self.config.dropout_prob) for pair in itertools.pairwise(sizes)]
        self.projection_output_size = sizes[-1]
        super()._build_output_layer()

    def _build_loss_function(self) -> None:
        if self.option("ranking_loss") not in _LOSSES:
            raise ValueError(
                f"[RankingHead] expected ranking_loss among {', '.join(_LOSSES)} but got "
                f"{self.option('ranking_loss')!r}. Choose one of them."
            )
        if self.option("temperature") <= 0:
            raise ValueError(
                f"[RankingHead] expected a positive temperature but got {self.option('temperature')}. Use 1."
            )

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, mx.array]:
        lists = hidden_states.shape[:-2]
        mask = item_mask = None
        if self.config.use_pooling and hidden_states.ndim == 4:
            mask = as_boolean_mask(attention_mask, hidden_states.shape[:3])
            if mask is not None:
                item_mask, mask = mx.any(mask, axis=-1), mask.flatten(0, 1)
            hidden_states = hidden_states.flatten(0, 1)
        elif self.config.use_pooling and hidden_states.ndim == 3:
            mask = as_boolean_mask(attention_mask, hidden_states.shape[:2])
            item_mask = None if mask is None else mx.any(mask, axis=-1)
        else:
            lists = hidden_states.shape[:-1]
            item_mask = as_boolean_mask(attention_mask, lists)
            hidden_states = zero_padding(hidden_states, item_mask).reshape(-1, hidden_states.shape[-1])
        features = self._pooled_features(hidden_states, mask)
        for block in self.scorer:
            features = block(features)
        scores = self.output(features).astype(mx.float32).reshape(lists) / self.option("temperature")
        return self._outputs(scores, item_mask)

    def _outputs(self, scores: mx.array, item_mask: mx.array | None) -> dict[str, mx.array]:
        if item_mask is not None:
            scores = mx.where(item_mask, scores, mx.finfo(mx.float32).min)
        order = mx.argsort(-scores, axis=-1).astype(mx.int32)
        if self.option("ranking_loss") == "listnet":
            rankings = mx.softmax(scores, axis=-1)
            rankings = rankings if item_mask is None else mx.where(item_mask, rankings, 0.0)
        else:
            rankings = mx.argsort(order, axis=-1).astype(mx.int32) + 1
        outputs = {"scores": scores, "logits": scores, "rankings": rankings, "predictions": order}
        return outputs if item_mask is None else {**outputs, "item_mask": item_mask}

    def compute_loss(self, predictions: Mapping[str, mx.array], targets: Any) -> mx.array:
        """Return the scalar loss.

        Args:
            predictions: Outputs of the head.
            targets: Relevance of the shape of the scores, or a mapping with `relevance` and optionally `group_ids`
                (items of one id form a list) and `mask`.
        """
        relevance, groups, mask = ranking_targets(targets)
        present = predictions.get("item_mask")
        if present is not None:
            mask = present if mask is None else present & mask.astype(mx.bool_)
        name = self.option("ranking_loss")
        options = {"margin": self.option("margin")} if name == "hinge" else {}
        return _LOSSES[name](predictions["scores"], relevance, mask, groups, **options)

    def compute_metrics(self, predictions: Mapping[str, mx.array], targets: Any) -> dict[str, float]:
        """Return ndcg@5, ndcg@10, map and mrr."""
        relevance, groups, mask = ranking_targets(targets)
        present = predictions.get("item_mask")
        if present is not None:
            mask = present if mask is None else present & mask.astype(mx.bool_)
        return metrics.ranking_metrics(predictions["scores"], relevance, mask, groups)


def ranking_targets(targets: Any) -> tuple[mx.array, mx.array | None, mx.array | None]:
    """Return relevance, group ids and mask from an array or a mapping."""
    if isinstance(targets, Mapping):
        return targets["relevance"], targets.get("group_ids"), targets.get("mask")
    return targets, None, None
