"""The base class: custom heads, processing order, inputs, state; and the registry."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from heads import (
    HEADS,
    BaseKaggleHead,
    CompetitionType,
    HeadConfig,
    HeadRegistry,
    HeadType,
    MulticlassClassificationHead,
    create_head,
    create_head_from_competition,
    get_head_registry,
    register_head_class,
    select_best_head,
)
from heads.projection import WeightNormLinear


class CustomHead(BaseKaggleHead):
    def _build_output_layer(self):
        # Define output layer
        self.output = nn.Linear(self.projection_output_size, self.config.output_size)

    def _build_loss_function(self):
        # Define loss
        self.loss_fn = nn.losses.mse_loss

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        # Apply pooling
        pooled = self._apply_pooling(hidden_states, attention_mask)

        # Apply projection
        projected = self.projection(pooled)

        # Get output
        output = self.output(projected)

        return {"predictions": output}

    def compute_loss(self, predictions, targets, **kwargs):
        return self.loss_fn(predictions["predictions"], targets)


def config(**fields):
    return HeadConfig(**{"head_type": "multiclass_classification", "input_size": 8, "output_size": 3, **fields})


def test_the_custom_head_of_the_documentation_runs():
    head = CustomHead(config(hidden_sizes=[6], pooling_type="mean", use_task_attention=True))
    assert head.head_type == HeadType.MULTICLASS_CLASSIFICATION
    assert head.projection_output_size == 6
    hidden, mask = mx.random.normal((2, 5, 8)), mx.array([[1] * 5, [1, 1, 0, 0, 0]])
    outputs = head(hidden, mask)
    assert outputs["predictions"].shape == (2, 3)
    targets = mx.zeros((2, 3))
    value, gradients = nn.value_and_grad(head, lambda x: head.compute_loss(head(x, mask), targets))(hidden)
    assert value.item() > 0
    assert mx.any(gradients["output"]["weight"] != 0)
    assert head.compute_metrics(outputs, targets) == {"loss": head.compute_loss(outputs, targets).item()}


def test_abstract_classes_cannot_be_built():
    with pytest.raises(TypeError, match="compute_loss, forward"):
        BaseKaggleHead(config())

    class HalfHead(BaseKaggleHead):
        def forward(self, hidden_states, attention_mask=None):
            return {}

    with pytest.raises(TypeError, match="methods compute_loss"):
        HalfHead(config())


def test_blocks_are_built_in_order():
    order = []

    class Recorder(CustomHead):
        def _build_pooling(self):
            order.append("pooling")
            super()._build_pooling()

        def _build_projection(self):
            order.append("projection")
            super()._build_projection()

        def _build_output_layer(self):
            order.append("output")
            super()._build_output_layer()

        def _build_loss_function(self):
            order.append("loss")
            super()._build_loss_function()

    Recorder(config())
    assert order == ["pooling", "projection", "output", "loss"]


def test_the_processing_order():
    """x -> x + Attention(Norm(x)) -> pool -> norm -> dense, norm, act -> ffn -> output, computed by hand."""
    head = MulticlassClassificationHead(
        config(pooling_type="mean", use_task_attention=True, hidden_sizes=[6], use_input_norm=True, use_ffn=True)
    )
    head.eval()
    hidden, mask = mx.random.normal((2, 5, 8)), mx.array([[True] * 5, [True, True, False, False, False]])
    attention, block, projection = head.task_attention, head.projection.blocks[0], head.projection
    x = hidden + attention.attention(attention.norm(hidden), mask)
    x = head.pooling(x, mask)
    x = nn.gelu(block.norm(block.dense(projection.norm(x))))
    x = head.output(projection.ffn(x))
    np.testing.assert_allclose(np.array(head(hidden, mask)["logits"]), np.array(x), atol=1e-6)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm", None])
def test_block_order_and_normalisation(norm, after):
    head = MulticlassClassificationHead(
        config(
            hidden_sizes=[6],
            use_layer_norm=norm == "layer_norm",
            use_batch_norm=norm is not None,
            norm_after_activation=after,
            activation="relu",
        )
    )
    head.eval()
    block = head.projection.blocks[0]
    x = mx.random.normal((4, 8))
    identity = lambda x: x  # noqa: E731
    steps = [block.norm or identity, nn.relu]
    y = block.dense(x)
    for step in reversed(steps) if after else steps:
        y = step(y)
    np.testing.assert_allclose(np.array(head(x)["logits"]), np.array(head.output(y)), atol=1e-6)
    wanted = {"layer_norm": "LayerNorm", "batch_norm": "BatchNorm", None: "NoneType"}[norm]
    assert type(block.norm).__name__ == wanted


def test_residual_connections():
    head = MulticlassClassificationHead(
        config(hidden_sizes=[8, 6], use_residual_connections=True, use_layer_norm=False, activation="relu")
    )
    head.eval()
    first, second = head.projection.blocks
    x = mx.random.normal((4, 8))
    y = x + nn.relu(first.dense(x))
    y = second.skip(y) + nn.relu(second.dense(y))
    assert "skip" not in first
    np.testing.assert_allclose(np.array(head(x)["logits"]), np.array(head.output(y)), atol=1e-6)


def test_heads_of_the_multihead_and_topic_models():
    """pooled -> dropout -> (Linear -> act -> dropout) x n -> Linear, without any norm."""
    head = MulticlassClassificationHead(
        config(hidden_sizes=[8, 8], use_layer_norm=False, activation="relu", input_dropout=0.2, dropout_prob=0.2)
    )
    shapes = {name: array.shape for name, array in head.state_arrays().items()}
    assert shapes == {
        "projection.blocks.0.dense.weight": (8, 8),
        "projection.blocks.0.dense.bias": (8,),
        "projection.blocks.1.dense.weight": (8, 8),
        "projection.blocks.1.dense.bias": (8,),
        "output.weight": (3, 8),
        "output.bias": (3,),
    }
    x = mx.random.normal((4, 8))
    head.eval()
    y = x
    for block in head.projection.blocks:
        y = nn.relu(block.dense(y))
    np.testing.assert_allclose(np.array(head(x)["logits"]), np.array(head.output(y)), atol=1e-6)
    kept = [dropout._p_1 for dropout in (head.projection.dropout, *(b.dropout for b in head.projection.blocks))]
    assert kept == pytest.approx([0.8] * 3)


def test_weight_norm():
    layer = WeightNormLinear(8, 6)
    x = mx.random.normal((4, 8))
    np.testing.assert_allclose(np.array(layer(x)), np.array(x @ layer.v.T), atol=1e-5)
    layer.v, layer.g = 3 * layer.v, 2 * layer.g
    np.testing.assert_allclose(np.array(layer(x)), np.array(2 / 3 * x @ layer.v.T), atol=1e-5)
    head = MulticlassClassificationHead(config(hidden_sizes=[6], use_weight_norm=True))
    assert isinstance(head.projection.blocks[0].dense, WeightNormLinear)


def test_leaky_relu_has_slope_0_1():
    head = MulticlassClassificationHead(config(hidden_sizes=[4], activation="leaky_relu"))
    assert mx.allclose(head.projection.blocks[0].activation(mx.array([-2.0, 2.0])), mx.array([-0.2, 2.0]))


def test_initialisation():
    head = MulticlassClassificationHead(config(input_size=400, hidden_sizes=[300]))
    output, hidden = np.array(head.output.weight), np.array(head.projection.blocks[0].dense.weight)
    assert abs(output.std() - 0.02 * 0.88) < 0.002  # truncated at two standard deviations
    assert np.abs(output).max() <= 0.04 + 1e-6
    limit = np.sqrt(6 / 700)
    assert np.abs(hidden).max() <= limit
    assert abs(hidden.std() - limit / np.sqrt(3)) < 0.001
    assert not np.any(np.array(head.output.bias))


def test_inputs_are_checked():
    head = MulticlassClassificationHead(config())
    with pytest.raises(ValueError, match="'hidden_states'"):
        head({"attention_mask": None})
    with pytest.raises(ValueError, match="width 8 but got shape"):
        head(mx.zeros((2, 5, 7)))
    with pytest.raises(ValueError, match="attention_mask"):
        head(mx.zeros((2, 5, 8)), mx.ones((2, 4)))
    with pytest.raises(ValueError, match=r"\(B, L, D\)"):
        head(mx.zeros((2, 2, 5, 8)))
    assert head(mx.zeros((2, 8)))["logits"].shape == (2, 3)
    unpooled = MulticlassClassificationHead(config(use_pooling=False))
    assert unpooled(mx.zeros((2, 8)))["logits"].shape == (2, 3)
    with pytest.raises(ValueError, match="use_pooling=False"):
        unpooled(mx.zeros((2, 5, 8)))
    attentive = MulticlassClassificationHead(config(use_task_attention=True))
    with pytest.raises(ValueError, match="task attention"):
        attentive(mx.zeros((2, 8)))


@pytest.mark.parametrize(
    ("head_type", "fields", "match"),
    [
        ("multiclass_classification", {"extra": {"colour": 1}}, "colour"),
        ("question_answering", {"extra": {"colour": 1}}, "no further options"),
        ("regression", {"use_competition_tricks": True}, "use_competition_tricks=False"),
        ("multiclass_classification", {"use_uncertainty": True}, "use_uncertainty"),
        ("ranking", {"ensemble_size": 3}, "ensemble_size"),
        ("ranking", {"label_smoothing": 0.1}, "label_smoothing"),
        ("contrastive", {"class_weights": [1, 2]}, "class_weights"),
        ("multiclass_classification", {"class_weights": [1, 2]}, "3 class_weights"),
        ("multiclass_classification", {"normalization_type": "norm"}, "normalization_type"),
        ("multiclass_classification", {"hidden_sizes": [4], "activation": "act"}, "activation_type"),
        ("multiclass_classification", {"use_task_attention": True, "attention_type": "x"}, "attention_type"),
        ("multiclass_classification", {"use_ffn": True, "ffn_type": "x"}, "ffn_type"),
    ],
)
def test_options_without_meaning_are_refused(head_type, fields, match):
    base = {"head_type": head_type, "input_size": 8, "output_size": 3, "use_input_norm": True}
    with pytest.raises(ValueError, match=match):
        create_head({**base, **fields})


def test_state_is_strict():
    head, other = (MulticlassClassificationHead(config(hidden_sizes=[4])) for _ in range(2))
    state = head.state_arrays()
    other.load_state_arrays(state)
    assert all(mx.array_equal(array, state[name]) for name, array in other.state_arrays().items())
    with pytest.raises(ValueError, match=r"missing \['output.bias'\]"):
        other.load_state_arrays({name: array for name, array in state.items() if name != "output.bias"})
    with pytest.raises(ValueError, match=r"unexpected \['more'\]"):
        other.load_state_arrays({**state, "more": mx.zeros(1)})
    with pytest.raises(ValueError, match=r"output\.bias of shape"):
        other.load_state_arrays({**state, "output.bias": mx.zeros(4)})


def test_batch_norm_statistics_are_saved_and_not_trained():
    head = MulticlassClassificationHead(config(hidden_sizes=[4], use_layer_norm=False, use_batch_norm=True))
    head.train()
    mx.eval(head(3 + mx.random.normal((16, 8)))["logits"])
    state = head.state_arrays()
    statistics = [name for name in state if "running" in name]
    assert len(statistics) == 2
    head.unfreeze()
    assert not any("running" in name for name in dict(nn.utils.tree_flatten(head.trainable_parameters())))
    other = MulticlassClassificationHead(config(hidden_sizes=[4], use_layer_norm=False, use_batch_norm=True))
    other.load_state_arrays(state)
    head.eval(), other.eval()
    x = mx.random.normal((3, 8))
    assert mx.array_equal(head(x)["logits"], other(x)["logits"])


def test_constructor_options_go_to_extra():
    head = MulticlassClassificationHead(config(), loss="focal", focal_gamma=1.0)
    assert head.config.extra == {"loss": "focal", "focal_gamma": 1.0}
    assert MulticlassClassificationHead.from_config(head.get_config()).config == head.config


def test_unknown_heads_are_named():
    with pytest.raises(ValueError, match="register_head_class"):
        create_head(HeadConfig("poetry", 8, 3))
    with pytest.raises(ValueError, match="register_head_class"):
        get_head_registry().get_name(CustomHead(config()))


def test_registering_a_head():
    @register_head_class("custom_test", "regression", ["regression"], priority=-1, requirements={"odd"})
    class Registered(CustomHead):
        pass

    registry = get_head_registry()
    assert HEADS["custom_test"] is registry.get_head_class("custom_test") is Registered
    head = create_head(HeadConfig("custom_test", 8, 3))
    assert isinstance(head, Registered)
    assert registry.get_name(head) == "custom_test"
    assert "custom_test" in registry.list_heads()
    assert registry.list_heads_by_type("regression") == ["custom_test", "regression"]
    assert registry.list_heads_by_competition("regression") == ["regression", "custom_test"]
    assert select_best_head("regression", requirements=["odd"]) == "custom_test"
    assert select_best_head("regression", exclude=["regression"]) == "custom_test"
    with pytest.raises(ValueError, match="expected a head for regression"):
        select_best_head("regression", exclude=["regression", "custom_test"])
    with pytest.raises(ValueError, match="unused name"):
        register_head_class("regression")(Registered)
    with pytest.raises(ValueError, match="subclass of BaseKaggleHead"):
        HeadRegistry().register("x", nn.Linear)
    del HEADS["custom_test"], registry._entries["custom_test"]


@pytest.mark.parametrize("kind", CompetitionType)
def test_every_competition_has_a_head(kind):
    size = 1 if kind in ("regression", "ranking", "time_series", "recommendation") else 4
    head = create_head_from_competition(kind, 16, size)
    wanted = {"recommendation": "ranking", "time_series": "time_series_regression"}.get(kind.value, kind.value)
    assert head.config.head_type == wanted


def test_competition_overrides():
    head = create_head_from_competition(
        "multiclass_classification", 16, 4, head_name="ensemble", config_overrides={"num_heads": 2}
    )
    assert (type(head).__name__, head.num_members) == ("EnsembleClassificationHead", 2)
    with pytest.raises(ValueError, match="colour"):
        create_head_from_competition("regression", 16, 1, config_overrides={"colour": "red"})
    with pytest.raises(ValueError, match="competition_type"):
        create_head_from_competition("poetry", 16, 1)
