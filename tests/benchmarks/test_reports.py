"""What is done with results: the comparison with a stored one, pictures, the HTML page, and peers."""

import copy
import json
import os
import re
import select
import signal
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pytest

from benchmarks import check, compare, html, latency, plots, report
from benchmarks.__main__ import main
from benchmarks.peers import client

ONE_CALL = ["--calls", "1", "--rounds", "1", "--lengths", "8"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def no_first_call(monkeypatch):
    """Without the process that times a first call: ``test_each_command`` has it."""
    monkeypatch.setattr(latency, "first_call", lambda *_: 1.0)


@pytest.fixture
def stored():
    times = {"first ms": 9.0, "type": "float32"}
    rows = [{"tokens": length, **times, "p50": 1.0 * length, "p90": 2.0 * length, "p99": 3.0 * length}
            for length in (8, 16)]  # fmt: skip
    return report.build("latency", {"model": "tiny", "dtype": "float32"}, rows)


def test_check_names_what_got_slower(stored):
    new = copy.deepcopy(stored)
    assert check.check(new, stored) == ([], [])
    new["rows"][1] |= {"p50": 20.0, "p99": 1000.0}  # 25 % more; tails are not judged
    assert check.check(new, stored) == (["float32 16: p50 was 16 and is 20 (+25%)."], [])
    assert check.check(new, stored, tolerance=0.3) == ([], [])
    assert check.check(stored, new) == ([], [])  # faster is no complaint


def test_check_knows_which_way_is_better():
    rows = [{"what": "ragged", "type": "float32", "texts/s": 100.0, "seconds": 1.0}]
    old = report.build("throughput", {"model": "tiny"}, rows)
    new = report.build("throughput", {"model": "tiny"}, [rows[0] | {"texts/s": 80.0, "seconds": 1.25}])
    assert check.check(new, old)[0] == [
        "ragged float32: seconds was 1 and is 1.25 (+25%).",
        "ragged float32: texts/s was 100 and is 80 (+25%).",
    ]
    assert check.check(old, new)[0] == []


def test_check_says_what_does_not_compare(stored):
    new = copy.deepcopy(stored)
    new["machine"]["processor"] = "another"
    new["settings"]["dtype"] = "float16"
    new["rows"][0]["tokens"] = 32
    worse, notes = check.check(new, stored)
    assert worse == []
    assert [note.split()[0] for note in notes] == ["processor", "dtype", "float32", "float32"]
    with pytest.raises(ValueError, match=r"\[check\] expected a stored result of latency but got load"):
        check.check(stored, report.build("load", {}, []))


def test_check_of_all_benchmarks(stored):
    memory = report.build("memory", {}, [{"threads": n, "calls": 10, "process MB": 100.0} for n in (1, 4)])
    old = report.build("all", {}, [], results=[stored, memory, report.build("load", {}, [])])
    slow = copy.deepcopy(stored)
    slow["rows"][0]["p50"] *= 2
    large = copy.deepcopy(memory)
    large["rows"][1]["process MB"] = 300.0
    new = report.build("all", {}, [], results=[slow, large, report.build("train", {}, [])])
    worse, notes = check.check(new, old)
    assert worse == [
        "latency, float32 8: p50 was 8 and is 16 (+100%).",
        "memory, 4 10: process MB was 100 and is 300 (+200%).",
    ]
    assert notes == ["train: not in the stored result.", "load: not measured now."]


def test_memory_is_drawn_by_threads():
    rows = [{"threads": n, "calls": c, "process MB": 100.0 * n} for n in (1, 4) for c in (1, 10)]
    axes = matplotlib.figure.Figure().subplots()
    plots.DRAWN["memory"](axes, rows)
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines == {
        "process MB, 1 threads": ([1, 10], [100.0, 100.0]),
        "process MB, 4 threads": ([1, 10], [400.0, 400.0]),
    }


def test_check_on_the_command_line(tiny_bert_folder, tmp_path, capsys, stored, no_first_call):
    rows = [row | {"p50": 1e-9, "p90": 1e-9} for row in stored["rows"]]
    before = tmp_path / "before.json"
    before.write_text(json.dumps(stored | {"rows": rows}))
    command = ["latency", "--model", str(tiny_bert_folder), *ONE_CALL, "--check", str(before)]
    assert main(command) == 1
    assert "worse: float32 8: p50 was 1e-09" in capsys.readouterr().out
    before.write_text(json.dumps(stored | {"rows": [row | {"p50": 1e9} for row in stored["rows"]]}))
    assert main(command) == 0
    before.write_text("{}")
    assert main(command) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "rows"),
    [
        ("latency", [{"tokens": 8, "type": "float32", "first ms": 2.0, "p50": 1.0, "p90": 1.5, "p99": 1.9}]),
        ("latency", [{"tokens": 8, "type": "float32", "p50": 1.0}, {"tokens": 8, "type": "8bit", "p50": 2.0}]),
        ("throughput", [{"what": "8 x 512", "type": "float32", "of peak": 0.5}]),
        ("memory", [{"calls": 1, "active MB": 1.0, "cache MB": 2.0, "process MB": 3.0}, {"converting": "as stored"}]),
        ("load", [{"what": "load, first", "seconds": 0.1}]),
        ("compare", [{"engine": "mlx-bert", "texts/s": 10.0}]),
    ],
)
def test_pictures(verb, rows):
    assert plots.png(report.build(verb, {"model": "tiny"}, rows)).startswith(PNG)
    assert plots.png(report.build(verb, {"model": "tiny"}, [])) is None


def test_pictures_need_matplotlib(monkeypatch, stored):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'mlx-bert\[plot\]'"):
        plots.png(stored)
    assert "pictures need matplotlib" in html.page([stored])


def test_the_page_needs_nothing_else(stored):
    stored["note"] = "<script>alert(1)</script>"
    page = html.page([stored], {"train": "no <torch>"})
    assert "data:image/png;base64," in page
    assert "<script" not in page
    assert "no &lt;torch&gt;" in page
    assert not re.search(r"(src|href)='(?!data:)", page)
    assert "<td>48</td>" in page  # p99 at 16 tokens
    raw = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1]
    assert json.loads(__import__("html").unescape(raw))["rows"] == stored["rows"]


def test_plot_beside_the_result(tiny_bert_folder, tmp_path, capsys, no_first_call):
    output = tmp_path / "latency.json"
    assert main(["latency", "--model", str(tiny_bert_folder), *ONE_CALL, "--plot"]) == 2
    assert "expected --save or --output with --plot" in capsys.readouterr().err
    command = ["latency", "--model", str(tiny_bert_folder), *ONE_CALL, "--plot", "--output", str(output)]
    assert main(command) == 0
    assert output.with_suffix(".png").read_bytes().startswith(PNG)


def test_one_report_of_all(tiny_bert_folder, tmp_path, capsys):
    page = tmp_path / "report.html"
    skipped = ["latency", "load", "train", "compare"]
    command = ["all", "--quick", "--model", str(tiny_bert_folder), "--html", str(page), "--skip", *skipped]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "| throughput | 1 rows  |" in shown
    assert "| memory     | 11 rows |" in shown
    assert page.read_text().count("data:image/png") == 2
    assert main(["all", "--model", str(tmp_path / "nowhere"), "--html", str(page), "--skip", "memory", *skipped]) == 2
    assert "nothing could be measured" in capsys.readouterr().err


# --- peers ------------------------------------------------------------------------------------------------------------

RUNNER = """
import argparse
from protocol import Engine, serve

def load(args):
    import numpy as np
    if args.batch_size == 13:
        raise RuntimeError("no luck")
    encode = lambda inputs: np.ones((len(inputs), 2)) * len(inputs)
    return Engine(encode, {"engine": "fake", "sorted": args.sort})

if __name__ == "__main__":
    serve(load)
"""


@pytest.fixture
def fake_peer(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(RUNNER)
    (tmp_path / "protocol.py").write_text((client.FOLDER / "protocol.py").read_text())
    monkeypatch.setattr(client, "FOLDER", tmp_path)
    monkeypatch.setitem(client.PEERS, "fake", ("fake", ("--sort",)))
    return "fake"


def test_a_peer_answers(fake_peer):
    peer = client.Peer(fake_peer, sys.executable, "nowhere", ["a", "b"], 4)
    assert peer.about["engine"] == "fake"
    assert peer.about["sorted"] is True
    np.testing.assert_array_equal(peer.embeddings, np.full((2, 2), 2))
    assert 0 <= peer() < 5
    peer.close()
    assert peer._process.returncode == 0


# Encodes at once the first time; then for ever, while a pipe that the test reads is held open.
SLOW = """
import time
from protocol import Engine, serve

def load(args):
    import numpy as np
    holding = []
    def encode(inputs):
        if args.batch_size == 1 or holding:
            while True:
                sum(range(1000))
        holding.append(open(args.model, "w"))
        return np.ones((len(inputs), 2))
    return Engine(encode, {"engine": "slow"})

serve(load)
"""
PARENT = """
import sys
from pathlib import Path
from benchmarks.peers import client

client.FOLDER = Path(sys.argv[1])
client.PEERS["slow"] = ("slow", ())
peer = client.Peer("slow", sys.executable, sys.argv[2], ["a"], 4)
print("asking", flush=True)
peer()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_peer_ends_with_who_asked(tmp_path, fake_peer, number):
    (tmp_path / "slow.py").write_text(SLOW)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(pipe)]
    # a shell's background job ignores SIGINT, and so would what it starts
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "preexec_fn": heed}
    with subprocess.Popen(command, **options) as parent:
        assert parent.stdout.readline() == "asking\n"
        assert select.select([held], [], [], 0.2)[0] == []  # the peer runs and says nothing
        parent.send_signal(number)
    assert select.select([held], [], [], 20)[0] == [held]  # the end of the pipe: its only writer is gone
    assert os.read(held, 1) == b""
    os.close(held)


def test_a_peer_runs_once_for_the_check_and_once_a_round(fake_peer, tmp_path, tiny_bert_folder, monkeypatch):
    counts = tmp_path / "counts"
    counting = RUNNER.replace("lambda inputs:", f"lambda inputs: open({str(counts)!r}, 'a').write('x') and")
    (tmp_path / "fake.py").write_text(counting)
    monkeypatch.setitem(client.REQUIREMENTS, "fake", ())
    monkeypatch.setattr(client, "CHOICES", ("fake",))
    monkeypatch.setattr(compare, "chosen_peers", lambda *_, **__: ["fake"])
    monkeypatch.setattr(compare, "check_equal", lambda outputs: None)
    monkeypatch.setattr(compare.roofline, "utilisation", lambda *_: 0.5)  # it computes nothing, too fast to be true
    assert main(["compare", "--model", str(tiny_bert_folder), "--shape", "2x16", "--rounds", "1"]) == 0
    assert counts.read_text() == "xx"


def test_a_peer_that_fails_says_why(fake_peer):
    with pytest.raises(ValueError, match=r"\[benchmarks\] fake failed: RuntimeError: no luck"):
        client.Peer(fake_peer, sys.executable, "nowhere", ["a"], 13)


def test_which_peers_run(monkeypatch, tmp_path):
    monkeypatch.setenv(client.HOME_VARIABLE, str(tmp_path))
    assert client.python_of("sentence_transformers", install=False) == sys.executable
    assert client.python_of("mlx_vlm", install=False) is None
    (tmp_path / "mlx_vlm").mkdir()
    complete = tmp_path / "mlx_vlm" / "complete"
    complete.write_text("what an older version needed")
    assert client.python_of("mlx_vlm", install=False) is None
    complete.write_text("\n".join(client.REQUIREMENTS["mlx_vlm"]))
    assert client.python_of("mlx_vlm", install=False) == str(tmp_path / "mlx_vlm" / "bin" / "python")
    assert compare.chosen_peers(["mlx-embeddings", "onnxruntime"]) == [
        "mlx-embeddings",
        "mlx-embeddings, sorted by its caller",
        "onnxruntime",
    ]
    assert compare.chosen_peers(["none"]) == []
    assert compare.chosen_peers(["mlx-embeddings", "mlx-vlm"], fixed=True) == [
        "mlx-embeddings",
        "mlx-vlm, sorted by its caller",
    ]


def test_an_installation_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv(client.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setitem(client.REQUIREMENTS, "fake", ("no-such-library",))
    monkeypatch.setattr(client.venv, "create", lambda folder, **options: folder.mkdir())
    failed = subprocess.CompletedProcess([], 1, "", "WARNING\nERROR: no matching distribution\n")
    monkeypatch.setattr(client.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(ImportError, match=r"fake could not be installed: ERROR: no matching distribution"):
        client.python_of("fake", install=True)
    assert client.python_of("fake", install=False) is None  # nothing is taken for complete


def test_fixed_shapes_are_compared(tiny_bert_folder, tmp_path, capsys):
    command = ["compare", "--model", str(tiny_bert_folder), "--shape", "2x16", "--rounds", "1", "--peer", "none"]
    assert main([*command, "--output", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["settings"]["shape"] == "2x16"
    assert [row["engine"] for row in result["rows"]][:2] == ["mlx-bert", "freed memory returned to the system"]
    assert main([*command, "--no-switches", "--output", str(tmp_path / "r.json")]) == 0
    assert [row["engine"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == ["mlx-bert"]
    assert main(["compare", "--model", str(tiny_bert_folder), "--shape", "2x999", "--peer", "none"]) == 2
    assert "expected at most 64 tokens but got 999" in capsys.readouterr().err
    assert main(["compare", "--architecture", "bert-base", "--peer", "none"]) == 2
    assert "expected --shape with --architecture" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", "--shape", "4"])
    assert "expected such as 8x512 but got '4'" in capsys.readouterr().err
