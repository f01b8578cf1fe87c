"""``docs/settings.md`` has every setting, as declared."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from mlx_bert.multihead_config import GROUPS, MultiheadConfig
from mlx_bert.training import few_shot
from mlx_bert.training.args import TrainingArgs

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("settings_page", DOCS / "settings_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(page, heading):
    """The cells of the table below a heading, by the name in the first."""
    section = page.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_page_is_what_the_declarations_say(maker):
    assert (DOCS / "settings.md").read_text() == maker.page(), "run: python docs/settings_page.py"


def test_every_setting_is_there_once(maker):
    page = maker.page()
    found = rows_of(page, "Every run")
    assert list(found) == [field.name for field in dataclasses.fields(TrainingArgs)]
    assert found["output_dir"][:3] == ["`--output`", "str", '`"./training_output"`']
    assert found["warmup_steps"] == [
        "`--warmup-steps`",
        "int / None",
        "`None`",
        "updates of the warm-up; replaces warmup_ratio",
    ]
    assert "one of `float32`, `bfloat16`" in found["dtype"][3]
    own = rows_of(page, "MultiheadClassifier")
    assert [*own, *GROUPS] == ["pooling", "task_sampling", *GROUPS]
    assert {*own, *GROUPS} == {field.name for field in dataclasses.fields(MultiheadConfig)}
    for name, group in GROUPS.items():
        listed = rows_of(page, name)
        assert list(listed) == [field.name for field in dataclasses.fields(group)]
        assert all(row[2] for row in listed.values())
    assert rows_of(page, "loss")["task_weights"][:2] == ["dict[str, float]", "`{}`"]


def test_recipes_show_what_differs(maker, monkeypatch):
    found = rows_of(maker.page(), "Recipes")
    assert found["optimizer"] == ['`"adamw"`', "", "", "", '`"adam"`']
    assert "seed" not in found
    assert found["batch_size"][1] == ""  # few shot: as in every run
    monkeypatch.setitem(few_shot.DEFAULTS, "seed", 7)
    assert rows_of(maker.page(), "Recipes")["seed"][:2] == ["`42`", "`7`"]


def test_a_field_without_a_meaning_is_not_passed_over(maker):
    @dataclasses.dataclass
    class Group:
        """Settings.

        Attributes:
            told: what it does.
        """

        told: int = 1
        untold: int = 2

    assert maker.meanings(Group) == {"told": "what it does"}
    with pytest.raises(KeyError, match="untold"):
        maker._group(Group)
