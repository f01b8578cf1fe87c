"""Help and import load nothing heavy: what keeps them under 0.2 s and 0.5 s on an idle core."""

import json
import subprocess
import sys

from mlx_bert.__main__ import VERBS

HEAVY = {
    "mlx",
    "numpy",
    "scipy",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "tqdm",
    "huggingface_hub",
    "pyarrow",
}
PROBE = """
import contextlib, io, json, sys
loaded = {}
import mlx_bert
loaded["import mlx_bert"] = list(sys.modules)
from mlx_bert.__main__ import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(arguments)
    loaded[" ".join(arguments)] = list(sys.modules)
print(json.dumps(loaded))
"""


def test_no_help_loads_anything_heavy():
    actions = [["search", action] for action in ("build", "add", "query", "info")]
    calls = [[*arguments, "--help"] for arguments in ([], *([verb] for verb in VERBS), *actions)]
    result = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    loaded = json.loads(result.stdout)
    assert len(loaded) == 1 + len(calls)
    for call, modules in loaded.items():
        assert not HEAVY & {module.partition(".")[0] for module in modules}, call
    assert {f"mlx_bert.cli.{verb}" for verb in VERBS} <= set(loaded["search info --help"])  # each was really built
