"""Pictures: what is drawn, that the files are whole PNGs, and what is refused."""

import builtins

import numpy as np
import pytest

from mlx_bert.plots import ANNOTATED_CLASSES, _confusion_figure, confusion_png, curves, curves_png, require_matplotlib

HISTORY = {
    "steps": [
        {"step": 10, "loss": 2.0, "learning_rate": 1e-4},
        {"step": 20, "loss": 1.0, "learning_rate": 5e-5},
        {"step": 30, "loss": float("nan"), "learning_rate": 2e-5},
    ],
    "epochs": [
        {"step": 15, "epoch": 1, "train_loss": 1.8, "eval_loss": 1.5, "eval_accuracy": 0.5, "eval_rmse": 3.0},
        {"step": 30, "epoch": 2, "train_loss": 0.9, "eval_loss": 1.1, "eval_accuracy": 0.75, "eval_rmse": 0.5},
    ],
}


def pixels(path):
    """The picture as numbers in [0, 1], ``(height, width, 4)``."""
    from matplotlib.image import imread

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return imread(path)


def test_the_lines_of_a_history():
    panels = curves(HISTORY)
    assert list(panels) == ["loss", "learning rate", "metrics", "rmse"]
    assert panels["loss"] == {"training": ([10, 20], [2.0, 1.0]), "evaluation": ([15, 30], [1.5, 1.1])}
    assert panels["learning rate"]["learning rate"] == ([10, 20, 30], [1e-4, 5e-5, 2e-5])
    assert panels["metrics"] == {"accuracy": ([15, 30], [0.5, 0.75])}
    assert panels["rmse"]["rmse"] == ([15, 30], [3.0, 0.5])


def test_a_history_without_evaluation_or_without_anything():
    assert list(curves({"steps": HISTORY["steps"], "epochs": []})) == ["loss", "learning rate"]
    with pytest.raises(ValueError, match="expected records of a training run but got an empty history"):
        curves({"steps": [], "epochs": []})


def test_curves_and_matrices_become_whole_files(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"an older picture")  # replaced, and nothing left beside it
    picture = pixels(curves_png(HISTORY, tmp_path / "curves.png"))
    assert picture.shape[1] > 2 * picture.shape[0]  # four panels side by side
    assert picture[..., :3].std() > 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_matrix_is_shaded_by_parts_of_its_rows_and_numbered_by_counts():
    axes = _confusion_figure([[90, 10], [0, 3]], ["a", "b"]).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.9, 0.1], [0, 1]])
    places = {text.get_position(): text.get_text() for text in axes.texts}
    assert places == {(0, 0): "90", (1, 0): "10", (1, 1): "3"}  # x is the predicted class, y the true one
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_many_classes_and_odd_names(tmp_path):
    names = [f"class $^{number}_" + "x" * (2 * number) for number in range(ANNOTATED_CLASSES + 1)]
    matrix = np.random.default_rng(0).integers(0, 50, (len(names), len(names)))
    assert pixels(confusion_png(matrix, names, tmp_path / "many.png")).shape[0] > 1000
    assert pixels(confusion_png(np.zeros((1, 1), int), [3], tmp_path / "one.png")).size


@pytest.mark.parametrize(
    ("matrix", "names", "message"),
    [
        ([[1, 2, 3], [4, 5, 6]], ["a", "b"], r"square matrix of counts but got shape \(2, 3\)"),
        ([], [], r"square matrix of counts but got shape \(0,\)"),
        ([["x"]], ["a"], "square matrix of counts"),
        ([[1, -1], [0, 1]], ["a", "b"], "counts of 0 or more"),
        ([[1, 0], [0, 1]], ["a"], "expected 2 names for 2 classes but got 1"),
    ],
)
def test_matrices_that_are_none(tmp_path, matrix, names, message):
    with pytest.raises(ValueError, match=message):
        confusion_png(matrix, names, tmp_path / "matrix.png")
    assert not list(tmp_path.iterdir())


def test_no_folder_and_no_matplotlib(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        confusion_png([[1]], ["a"], tmp_path / "nothing" / "matrix.png")
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"drawing needs matplotlib: pip install 'mlx-bert\[plot\]'"):
        require_matplotlib()
