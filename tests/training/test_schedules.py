import math

import pytest

from mlx_bert.training.schedules import SCHEDULES, create_schedule


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_warm_up_and_decay_of_a_worked_example(name):
    factor = create_schedule(name, total_steps=100, warmup_steps=10)
    rates = [2e-5 * factor(step) for step in (0, 5, 10, 55, 100)]
    assert rates == pytest.approx([0, 1e-5, 2e-5, 1e-5, 0], abs=1e-15)


def test_cosine_and_linear_differ_between_the_nodes():
    assert create_schedule("cosine", 100)(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert create_schedule("linear", 100)(25) == pytest.approx(0.75)


def test_cosine_per_epoch_of_a_worked_example():
    factor = create_schedule("cosine_per_epoch", total_steps=50 * 7, steps_per_epoch=7)
    rates = [1e-3 * factor(7 * epoch) for epoch in (0, 1, 25, 50)]
    assert rates == pytest.approx([1e-3, 9.990134e-4, 5e-4, 0], rel=1e-6, abs=1e-15)
    assert factor(7) == factor(13) != factor(14)


def test_cosine_per_epoch_warms_up_too():
    factor = create_schedule("cosine_per_epoch", 20, warmup_steps=4, steps_per_epoch=10)
    assert [factor(step) for step in (0, 2, 4, 10)] == pytest.approx([0, 0.5, 1, 0.5])


def test_polynomial_and_constant():
    assert create_schedule("polynomial", 10, power=3.0)(5) == pytest.approx(0.125)
    assert [create_schedule("constant", 10, 2)(step) for step in (0, 1, 2, 9)] == [0, 0.5, 1, 1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_between_0_and_1(name):
    factor = create_schedule(name, 30, 7, 6)
    assert all(0 <= factor(step) <= 1 for step in range(40))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\[schedule\] expected one of cosine"):
        create_schedule("sine", 10)
    with pytest.raises(ValueError, match="expected warmup_steps >= 0"):
        create_schedule("cosine", 10, -1)
