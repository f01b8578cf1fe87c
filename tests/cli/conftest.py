"""Fixtures for tests of the command line."""

import pytest
from cli_cases import FAST

from mlx_bert.__main__ import main


@pytest.fixture
def command(tiny_bert_folder, tmp_path, capsys):
    """Run a verb; it must succeed. Gives what it printed."""

    def run(verb, *argv, code=0):
        start = ["--model", tiny_bert_folder, *FAST] if verb == "train" else []
        given = [str(argument) for argument in (verb, *start, *argv)]
        assert main(given) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run
