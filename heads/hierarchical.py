"""Hierarchical classification: a label is a path from a root of a tree to one of its nodes.

Dimension key: B batch, F width after the projection, n_l nodes of level l, V leaves, N labels, T levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads import losses, metrics
from heads.base import BaseKaggleHead
from heads.classification import class_labels
from heads.initialization import glorot_linear


class LabelTree:
    """A checked forest of labels, by levels.

    Args:
        hierarchy: Parent -> children.
        label_to_idx: Label -> index used in targets and predictions; None numbers the labels level by level.

    Raises:
        ValueError: For a cycle, a node with two parents, a label without a place in the tree, or repeated indices.
    """

    def __init__(self, hierarchy: Mapping[str, list[str]], label_to_idx: Mapping[str, int] | None = None):
        children = {str(parent): [str(child) for child in nodes] for parent, nodes in hierarchy.items()}
        self.parent: dict[str, str] = {}
        for parent, nodes in children.items():
            for child in nodes:
                if child in self.parent:
                    raise ValueError(
                        f"[hierarchy] expected one parent for {child!r} but got {self.parent[child]!r} and {parent!r}. "
                        "Remove one of them."
                    )
                self.parent[child] = parent
        level = [node for node in children if node not in self.parent]
        self.levels: list[list[str]] = []
        while level:
            self.levels.append(level)
            level = [child for node in level for child in children.get(node, [])]
        nodes = [node for level in self.levels for node in level]
        if lost := sorted((set(children) | set(self.parent)) - set(nodes)):
            raise ValueError(f"[hierarchy] expected a tree but got a cycle through {', '.join(lost)}. Break it.")
        if not nodes:
            raise ValueError("[hierarchy] expected at least one parent with children but got none. Give a tree.")
        self.index = {node: number for number, node in enumerate(nodes)}
        if label_to_idx is not None:
            given = {str(label): int(index) for label, index in label_to_idx.items()}
            if different := sorted(set(given) ^ set(nodes)):
                raise ValueError(
                    f"[hierarchy] expected an index for every label of the tree and no other but got a difference in "
                    f"{', '.join(different)}. Make hierarchy and label_to_idx agree."
                )
            if sorted(given.values()) != list(range(len(nodes))):
                raise ValueError(
                    f"[hierarchy] expected label_to_idx to number the labels from 0 to {len(nodes) - 1} but got "
                    f"{sorted(given.values())}. Renumber them."
                )
            self.index = given
        self.children = children
        self.leaves = [node for node in nodes if not children.get(node)]

    def path(self, node: str) -> list[str]:
        """Return the nodes from the root to `node`."""
        path = [node]
        while path[-1] in self.parent:
            path.append(self.parent[path[-1]])
        return path[::-1]


class HierarchicalClassificationHead(BaseKaggleHead):
    """One linear layer per level of the label tree on shared features (with `hidden_dim`: after a ReLU layer).

    A label at any depth trains all its ancestors: the loss is the sum over levels of the cross-entropy over the samples
    whose path reaches that level, plus `consistency_weight` times the mean over parents of
    `mean_B (P(parent) - sum P(children))^2` with a softmax per level.
    A path has the probability of its choices among siblings, so the leaves' probabilities sum to 1 at any depth.

    Outputs: `level_logits` {"0": (B, n_0), ...}, `logits (B, V)` = log-probabilities of the leaves in tree order,
    `probabilities (B, V)`, `predictions (B,)` = index of the predicted leaf's label, `path (B, T)` = indices from the
    root, -1 below a shallow leaf. `decoding`: "joint" takes the most probable leaf, "greedy" the best child each time.
    Targets `(B,)`: label indices of leaves or inner nodes, -100 to ignore.

    Options: `hierarchy` {parent: [children]}, `label_to_idx`, `consistency_weight` (1), `hidden_dim`, `decoding`.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "hierarchy": None,
        "label_to_idx": None,
        "consistency_weight": 1.0,
        "hidden_dim": None,
        "decoding": "joint",
    }

    labels_are_classes = True

    def _check_options(self) -> None:
        super()._check_options()
        if not self.option("hierarchy"):
            raise ValueError(
                "[HierarchicalClassificationHead] expected the option hierarchy but got none. "
                "Give {parent: [children]}."
            )
        if self.option("decoding") not in ("joint", "greedy"):
            raise ValueError(
                f"[HierarchicalClassificationHead] expected decoding 'joint' or 'greedy' but got "
                f"{self.option('decoding')!r}. Choose one of the two."
            )
        self.tree = LabelTree(self.option("hierarchy"), self.option("label_to_idx"))
        self._build_tables()

    def _fixed_output_size(self) -> int:
        return len(self.tree.index)

    def _build_tables(self) -> None:
        """Set up the index tables; they follow from the hierarchy, so they are neither parameters nor saved."""
        tree = self.tree
        place = {node: i for level in tree.levels for i, node in enumerate(level)}
        paths = np.full((len(tree.index), len(tree.levels)), -1)
        for node, index in tree.index.items():
            for depth, ancestor in enumerate(tree.path(node)):
                paths[index, depth] = place[ancestor]
        self._paths = mx.array(paths.astype(np.int32))
        leaf_index = np.array([tree.index[leaf] for leaf in tree.leaves])
        self._leaf_index = mx.array(leaf_index.astype(np.int32))
        self._leaf_paths = mx.array(paths[leaf_index].astype(np.int32))
        # Siblings share a number: the place of their parent, or 0 for the roots.
        parents = [[place.get(tree.parent.get(node, ""), 0) for node in level] for level in tree.levels]
        self._siblings = [mx.array(np.equal.outer(row, row)) for row in parents]
        self._membership = [
            mx.array(np.equal.outer(np.arange(len(upper)), np.array(row)).astype(np.float32))
            for upper, row in zip(tree.levels[:-1], parents[1:], strict=True)
        ]
        width = max(len(level) for level in tree.levels)
        labels = np.full((len(tree.levels), width), -1)
        for depth, level in enumerate(tree.levels):
            labels[depth, : len(level)] = [tree.index[node] for node in level]
        self._labels = mx.array(labels.astype(np.int32))

    def _build_output_layer(self) -> None:
        hidden = self.option("hidden_dim")
        if hidden:
            self.hidden = glorot_linear(self.projection_output_size, hidden)
            self.projection_output_size = hidden
        self.levels = [self._output_layer(len(level)) for level in self.tree.levels]

    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> dict[str, Any]:
        features = self._pooled_features(hidden_states, attention_mask)
        if "hidden" in self:
            features = nn.relu(self.hidden(features))
        logits = [level(features).astype(mx.float32) for level in self.levels]
        choices = [_choice_log_probs(x, same) for x, same in zip(logits, self._siblings, strict=True)]
        leaves = self._leaf_scores(choices)
        places = self._greedy(choices) if self.option("decoding") == "greedy" else self._best_leaf(leaves)
        path = mx.where(places >= 0, self._labels[mx.arange(len(choices)), mx.maximum(places, 0)], -1)
        depth = mx.sum(places >= 0, axis=1, keepdims=True) - 1
        return {
            "level_logits": {str(depth): x for depth, x in enumerate(logits)},
            "logits": leaves,
            "probabilities": mx.exp(leaves),
            "predictions": mx.take_along_axis(path, depth, axis=1)[:, 0],
            "path": path,
        }

    def _leaf_scores(self, choices: list[mx.array]) -> mx.array:
        """Return the log-probability of each leaf `(B, V)`: the sum of its path's choices."""
        total = mx.zeros((1,))
        for depth, choice in enumerate(choices):
            places = self._leaf_paths[:, depth]
            total = total + mx.where(places >= 0, choice[:, mx.maximum(places, 0)], 0.0)
        return total

    def _best_leaf(self, leaves: mx.array) -> mx.array:
        return self._leaf_paths[mx.argmax(leaves, axis=-1)]

    def _greedy(self, choices: list[mx.array]) -> mx.array:
        """Return the place per level `(B, T)` of the best child at each step, -1 below a leaf."""
        place = mx.argmax(choices[0], axis=-1).astype(mx.int32)
        places = [place]
        for choice, membership in zip(choices[1:], self._membership, strict=True):
            mine = membership[mx.maximum(place, 0)] > 0
            goes_on = mx.any(mine, axis=-1) & (place >= 0)
            best = mx.argmax(mx.where(mine, choice, mx.finfo(mx.float32).min), axis=-1).astype(mx.int32)
            place = mx.where(goes_on, best, -1)
            places.append(place)
        return mx.stack(places, axis=1)

    def compute_loss(self, predictions: Mapping[str, Any], targets: mx.array) -> mx.array:
        """Return the scalar loss for `targets (B,)` or `(B, 1)`."""
        labels = class_labels(targets)
        known = labels != losses.IGNORE_INDEX
        places = mx.where(mx.expand_dims(known, 1), self._paths[mx.where(known, labels, 0)], -1)
        logits = list(predictions["level_logits"].values())
        total = mx.array(0.0)
        for depth, level in enumerate(logits):
            target = mx.where(places[:, depth] >= 0, places[:, depth], losses.IGNORE_INDEX)
            total = total + losses.cross_entropy(level, target)
        weight = self.option("consistency_weight")
        if weight and self._membership:
            probabilities = [mx.softmax(level, axis=-1) for level in logits]
            gaps, parents = mx.array(0.0), mx.array(0.0)
            for upper, lower, members in zip(probabilities[:-1], probabilities[1:], self._membership, strict=True):
                count = mx.sum(mx.any(members > 0, axis=1))
                gaps = gaps + count * losses.hierarchical_consistency_loss(upper, lower, members)
                parents = parents + count
            total = total + weight * gaps / parents
        return total

    def compute_metrics(self, predictions: Mapping[str, Any], targets: mx.array) -> dict[str, float]:
        """Return accuracy and macro f1 of the predicted label, and the accuracy at each level of the path."""
        labels = class_labels(targets)
        depth = mx.sum(self._paths[mx.maximum(labels, 0)] >= 0, axis=1, keepdims=True) - 1
        # A target above the leaves is compared with the predicted path at its own depth.
        reached = mx.take_along_axis(predictions["path"], depth, axis=1)
        result = metrics.token_metrics(reached, mx.expand_dims(labels, 1))
        wanted = self._paths[mx.maximum(labels, 0)]
        wanted_labels = mx.where(wanted >= 0, self._labels[mx.arange(wanted.shape[1]), mx.maximum(wanted, 0)], -1)
        counted = (wanted >= 0) & mx.expand_dims(labels != losses.IGNORE_INDEX, 1)
        right = mx.sum((predictions["path"] == wanted_labels) & counted, axis=0) / mx.sum(counted, axis=0)
        return result | {f"accuracy_level_{level}": value for level, value in enumerate(right.tolist())}


def _choice_log_probs(logits: mx.array, siblings: mx.array) -> mx.array:
    """Return the log-probability of each node among its siblings, `(B, n)`."""
    grouped = mx.where(siblings, mx.expand_dims(logits, 1), mx.finfo(mx.float32).min)
    return logits - mx.logsumexp(grouped, axis=-1)
