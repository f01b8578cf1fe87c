import math

import pytest

from mlx_bert.training.args import TrainingArgs
from mlx_bert.training.schedules import SCHEDULES, create_schedule, schedules_of


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
    # the last epoch may be shorter
    assert create_schedule("cosine_per_epoch", 10, steps_per_epoch=4)(9) == pytest.approx(0.25)


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


def test_a_run_that_is_all_warm_up():
    assert [create_schedule("linear", 4, 4)(step) for step in (1, 3, 4)] == [0.25, 0.75, 1]


def test_schedules_of_the_settings():
    def factors(step, **settings):
        args = TrainingArgs(output_dir="x", **settings)
        return [schedule(step) for schedule in schedules_of(args, total_steps=15, steps_per_epoch=5)]

    assert factors(1, schedule="constant", warmup_ratio=0.1) == [0.5, 0.5]  # 2 of 15
    assert factors(1, schedule="constant", warmup_ratio=0.1, warmup_steps=5) == [0.2, 0.2]
    assert factors(1, schedule="constant", warmup_ratio=0.1, head_warmup_ratio=0.25) == [0.5, 0.25]  # 4 of 15
    assert factors(5, schedule="linear", warmup_ratio=0.0, head_schedule="constant") == pytest.approx([2 / 3, 1])
    assert factors(5, schedule="polynomial", warmup_ratio=0.0) == pytest.approx([4 / 9, 4 / 9])
    assert factors(5, schedule="polynomial", warmup_ratio=0.0, schedule_power=3) == pytest.approx([8 / 27, 8 / 27])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\[schedule\] expected one of cosine"):
        create_schedule("sine", 10)
    with pytest.raises(ValueError, match="expected warmup_steps >= 0"):
        create_schedule("cosine", 10, -1)
