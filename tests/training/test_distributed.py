"""Data-parallel training with two real processes, held against one process."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from heads import MultiTaskNLPHead, NLPTaskConfig
from mlx_bert.core import BertCore
from mlx_bert.data.samplers import BatchIndices, LengthBucketSampler
from mlx_bert.model import BertWithHead
from mlx_bert.training.distributed import RankShares, World, _chunks
from mlx_bert.training.optimizers import GroupedOptimizer, parameter_groups
from mlx_bert.training.sentence_objective import GatheredObjective
from mlx_bert.training.step import TrainingStep, flat_parameters

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("rank_worker.py")
_spec = importlib.util.spec_from_file_location("rank_worker", WORKER)
rank_worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rank_worker)

ARGS = {
    "epochs": 2,
    "batch_size": 4,
    "eval_batch_size": 4,
    "progress": False,
    "save_every": "no",
    "log_every": 2,
    "metric": "loss",
    "max_grad_norm": 100.0,
}


@pytest.fixture(scope="module")
def settings(toy, tmp_path_factory):
    """A model without dropout and with class weights, and data whose shares weigh differently."""
    folder = tmp_path_factory.mktemp("start") / "model"
    model = toy.model(dropout=0.0, class_weights=[0.5, 1.0, 3.0])
    model.save_pretrained(folder)
    toy.tokenizer.save_pretrained(folder)
    examples = [{"text": row["text"], "labels": int(row["labels"])} for row in toy.examples(25)]
    for number in (3, 4, 11):
        examples[number]["labels"] = -100
    evaluation = [{"text": row["text"], "labels": int(row["labels"])} for row in toy.examples(10, 1)]
    # 25 examples in batches of 8 end with one of 1: the other rank has none; 10 in batches of 4 are 3
    return {"model": str(folder), "data": [examples], "evaluation": evaluation, "args": ARGS, "plain": True}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Pair:
    """Two ranks that do one run after the other; started anew where one has failed."""

    def __init__(self, folder):
        self.folder, self.processes, self.count = folder, [], 0

    def __call__(self, settings):
        """What each rank found, and what it printed."""
        if not self.processes:
            self.start()
        self.count += 1
        path = self.folder / f"settings {self.count}.json"
        path.write_text(json.dumps(settings))
        timer = threading.Timer(300, self.kill)
        timer.start()
        try:
            for process in self.processes:
                process.stdin.write(f"{path}\n")
                process.stdin.flush()
            return [json.loads(process.stdout.readline()) for process in self.processes]
        except (ValueError, OSError):
            errors = [log.read_text()[-5000:] for log in self.kill()]
            pytest.fail("\n".join(["a rank failed", *errors]))
        finally:
            timer.cancel()

    def logs(self):
        return [self.folder / f"errors {rank}.txt" for rank in range(2)]

    def start(self):
        (self.folder / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_HOSTFILE": str(self.folder / "hosts.json")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        for rank, log in enumerate(self.logs()):
            with open(log, "w") as errors:
                command, own = [sys.executable, str(WORKER)], {**env, "MLX_RANK": str(rank)}
                self.processes.append(subprocess.Popen(command, cwd=ROOT, env=own, stderr=errors, **pipes))

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []
        return self.logs()

    def stop(self):
        """End the processes, as a script that is done."""
        for process in self.processes:
            process.stdin.close()
        assert [process.wait(60) for process in self.processes] == [0] * len(self.processes)
        assert not any("Traceback" in log.read_text() for log in self.logs() if log.exists())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.stop()


def alone(settings, monkeypatch):
    """The same in this process."""
    if settings.get("plain"):
        monkeypatch.setattr(GroupedOptimizer, "apply", rank_worker.gradient_descent)
    return rank_worker.build(settings).train()


def weights(folder):
    return {
        f"{part}.{name}": array
        for part in ("bert", "head")
        for name, array in load_file(Path(folder) / part / "model.safetensors").items()
    }


def assert_close(first, second, atol):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, atol=atol, err_msg=name)


def test_two_ranks_are_one_with_the_double_batch(settings, pair, tmp_path, monkeypatch):
    outputs = [str(tmp_path / "rank 0"), str(tmp_path / "rank 1")]
    (first, printed), (second, other_printed) = pair({**settings, "output": outputs})
    assert (printed, other_printed) == ("evaluated\n" * 2, "")  # only rank 0 prints
    assert not Path(outputs[1]).exists()  # and writes
    double = {**settings, "args": {**ARGS, "batch_size": 8}, "output": [str(tmp_path / "alone")]}
    expected = alone(double, monkeypatch)
    start = weights(settings["model"])
    for model in ("final_model", "best_model"):
        reference = weights(tmp_path / "alone" / model)
        assert_close(reference, weights(Path(outputs[0]) / model), 2e-6)
        assert max(np.abs(reference[name] - start[name]).max() for name in start) > 1e-2
    for record in (*first["history"]["epochs"], *second["history"]["epochs"]):
        del record["seconds"]
    assert first == second
    assert first["size"] == 2
    assert (first["steps"], first["best_step"]) == (expected.steps, expected.best_step)
    for kind, names in (("steps", ("step", "loss", "grad_norm")), ("epochs", ("epoch", "train_loss", "eval_loss"))):
        for found, wanted in zip(first["history"][kind], expected.history[kind], strict=True):
            assert [found[name] for name in names] == pytest.approx([wanted[name] for name in names], abs=1e-5)
    assert first["metrics"] == pytest.approx(expected.metrics, abs=1e-5)


def test_two_ranks_of_a_multi_task_model(settings, pair, toy, tmp_path, monkeypatch):
    mx.random.seed(3)
    bert = BertCore.from_pretrained(toy.folder)
    tasks = [NLPTaskConfig(name, "text_classification", num_labels=3) for name in ("mood", "topic")]
    model = BertWithHead(bert, MultiTaskNLPHead(tasks, bert.get_hidden_size(), dropout_prob=0.0))
    model.save_pretrained(tmp_path / "model")
    toy.tokenizer.save_pretrained(tmp_path / "model")
    data, evaluation = (
        [{"text": row["text"], "labels": {"mood": int(row["labels"]), "topic": len(row["text"]) % 3}} for row in rows]
        for rows in (toy.examples(25), toy.examples(10, 1))
    )
    given = {**settings, "model": str(tmp_path / "model"), "data": [data], "evaluation": evaluation}
    outputs = [str(tmp_path / "rank 0"), str(tmp_path / "rank 1")]
    (first, _), (second, _) = pair({**given, "output": outputs})
    assert first["metrics"] == second["metrics"]
    double = {**given, "args": {**ARGS, "batch_size": 8}, "output": [str(tmp_path / "alone")]}
    expected = alone(double, monkeypatch)
    assert_close(weights(tmp_path / "alone/final_model"), weights(tmp_path / "rank 0/final_model"), 2e-6)
    assert {"mood_accuracy", "topic_accuracy"} <= first["metrics"].keys()
    assert first["metrics"] == pytest.approx(expected.metrics, abs=1e-5)


def test_batches_of_an_own_sampler_stay_whole_and_are_like_accumulated_ones(settings, pair, tmp_path, monkeypatch):
    # 7 batches: the last turn has one; with the same seeds, dropout is the same too
    args = {**ARGS, "epochs": 1}
    own = {**settings, "own_sampler": True, "dropout": 0.1, "args": args}
    pair({**own, "output": [str(tmp_path / "ranks")]})
    accumulated = {**own, "args": {**args, "gradient_accumulation_steps": 2}, "output": [str(tmp_path / "alone")]}
    alone(accumulated, monkeypatch)
    assert_close(weights(tmp_path / "alone/final_model"), weights(tmp_path / "ranks/final_model"), 2e-6)


def pairs_of(toy, count, seed=0):
    """(anchor, positive) texts of one class."""
    rows = sorted(toy.examples(2 * count, seed), key=lambda row: row["labels"])
    return [{"anchor": a["text"], "positive": b["text"]} for a, b in zip(rows[::2], rows[1::2], strict=True)]


def test_in_batch_negatives_of_all_ranks(pair, toy, tmp_path, monkeypatch):
    pairs = pairs_of(toy, 17)
    pairs[7] = pairs[3]  # for no_duplicates
    triplets = [{**pair, "negative": other["positive"]} for pair, other in zip(pairs, pairs[::-1], strict=True)]
    scored = [{"a": a, "b": b, "score": n % 5 / 4} for n, (a, b) in enumerate(map(dict.values, pairs))]
    gather, low = {"gather_across_ranks": True}, {"scale": 3.0}
    ranking = {"loss": "MultipleNegativesRanking", "data": pairs}
    runs = [
        {**ranking, "data": triplets, "loss_options": {**low, "symmetric": True}, "options": gather,
         "evaluation": triplets[:10]},
        {**ranking, "loss_options": low, "options": {**gather, "batch_sampler": "no_duplicates"}, "chunk_size": 3},
        {**ranking, "loss_options": low, "options": {**gather, "hard_negatives": {"num_negatives": 2}},
         "args": {"gradient_accumulation_steps": 2, "epochs": 2}},
        {"loss": "CoSENT", "data": scored, "options": gather, "args": {"dtype": "bfloat16"}},
        {**ranking, "data": triplets, "loss_options": {**low, "symmetric": True}},
    ]  # fmt: skip
    # 17 rows in batches of 8: one of the last batch's two parts is empty
    args = {**ARGS, "log_every": 1, "epochs": 1, "save_every": "no"}
    del args["metric"]
    settings = {"model": str(toy.folder), "args": args, "runs": runs, "plain": True}
    outputs = [str(tmp_path / "ranks"), str(tmp_path / "nothing")]
    (found, _), (second, _) = pair({**settings, "output": outputs})
    assert not (tmp_path / "nothing").exists()
    monkeypatch.setattr(GroupedOptimizer, "apply", rank_worker.gradient_descent)
    double = {**settings, "args": {**args, "batch_size": 8}, "output": [str(tmp_path / "alone")]}
    expected = rank_worker.train_sentences(double, 0)
    for number, (ours, wanted) in enumerate(zip(found, expected, strict=True)):
        assert ours == second[number]
        assert ours["measured"] == ours["metrics"]
        models = [
            load_file(tmp_path / who / str(number) / "final_model/model.safetensors") for who in ("ranks", "alone")
        ]
        if number < 3:
            assert ours["losses"] == pytest.approx(wanted["losses"], abs=2e-5), number
            assert_close(*models, 5e-6)
        elif number == 3:  # to the rounding of bfloat16
            assert ours["losses"] == pytest.approx(wanted["losses"], rel=2e-2)
        else:  # each rank's own negatives are another loss
            assert np.abs(np.subtract(ours["losses"], wanted["losses"])).max() > 0.5
    assert (tmp_path / "ranks/2/hard_negatives/epoch_1.json").is_file()


def test_a_loss_over_all_ranks_is_not_compiled(toy, tmp_path):
    """It waits for the other ranks."""
    settings = {"model": str(toy.folder), "args": {**ARGS, "metric": None, "compile": True, "freeze": "none"}}
    run = {"loss": "MultipleNegativesRanking", "data": pairs_of(toy, 4)}
    trainer = rank_worker.build_sentence(settings, run, str(tmp_path))
    plain, gathered = trainer.objective, GatheredObjective(trainer.objective.embedding_loss, [0, 0], World())
    optimizer = GroupedOptimizer(parameter_groups(trainer.model, trainer.args), flat_parameters(trainer.model))
    steps = [TrainingStep(trainer.model, objective, optimizer, trainer.args) for objective in (plain, gathered)]
    assert [step._part == step._part_step for step in steps] == [False, True]
    assert all(step._finish != step._finish_step for step in steps)


def test_ranks_share_the_run_of_a_frozen_encoder(settings, pair, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    one, two, bad, stop = ({"cache_dir": str(tmp_path / name)} for name in ("one", "two", "file/cache", "stop"))
    frozen = [({}, {}), (one, two), (one, two), (one, {}), (bad, two), (stop, stop)]
    output = {"output": [str(tmp_path / "runs")]}
    ranks = pair({**settings, **output, "frozen": frozen})
    # 25 and 10 examples in batches of 4 are 7 and 3; uncached there are 2 epochs of 4 and of 2 or 1 batches more
    shared, more = [[6, True], [4, True]], (2 * (4 + 2), 2 * (4 + 1))
    for rank, (found, _) in enumerate(ranks):
        assert found == [
            shared[rank], shared[rank], [0, True], shared[rank],
            shared[1] if rank else [6 + more[0], False], "stopped",
        ]  # fmt: skip
    assert len(list((tmp_path / "one").iterdir())) == len(list((tmp_path / "two").iterdir())) == 2
    double = {**settings, "args": {**ARGS, "batch_size": 8, "freeze": "backbone"}, "output": [str(tmp_path / "alone")]}
    alone(double, monkeypatch)
    for number in range(5):
        reference = weights(tmp_path / "alone/final_model")
        assert_close(reference, weights(tmp_path / f"runs/{number}/final_model"), 5e-6)


def test_ranks_share_the_run_of_a_frozen_encoder_over_choices(settings, toy, pair, tmp_path, monkeypatch):
    toy.model(dropout=0.0, head_type="multiple_choice", num_labels=1).save_pretrained(tmp_path / "model")
    toy.tokenizer.save_pretrained(tmp_path / "model")
    texts = [row["text"] for row in toy.examples(12)]
    rows = [
        {"text": texts[n % 7], "choices": [texts[n % 12], texts[n % 5], "the day"], "labels": n % 3} for n in range(35)
    ]
    parts = rows[:25], rows[25:]
    given = {**settings, "model": str(tmp_path / "model"), "data": parts[:1], "evaluation": parts[1]}
    disk = {"cache_dir": str(tmp_path / "cache")}
    ranks = pair({**given, "output": [str(tmp_path / "runs")], "frozen": [({}, {}), ({}, disk)]})
    # a pair that several questions have runs once, in one of the ranks
    pairs = [{(row["text"], choice) for row in part for choice in row["choices"]} for part in parts]
    batches = [-(-len(different) // 4) for different in pairs]
    assert sum(map(len, pairs)) < 3 * 35
    assert ranks[0][0] == [[sum(-(-count // 2) for count in batches), True]] * 2
    assert ranks[1][0] == [[sum(count // 2 for count in batches), True]] * 2
    args = {**ARGS, "batch_size": 8, "freeze": "backbone", "cache_encoder": False}
    alone({**given, "args": args, "output": [str(tmp_path / "alone")]}, monkeypatch)
    reference, start = weights(tmp_path / "alone/final_model"), weights(tmp_path / "model")
    assert max(np.abs(reference[name] - start[name]).max() for name in start) > 1e-3
    for number in range(2):
        assert_close(reference, weights(tmp_path / f"runs/{number}/final_model"), 5e-6)


def test_a_signal_to_one_rank_stops_all_and_the_resumed_run_is_the_same(settings, pair, tmp_path):
    args = {**ARGS, "ema_decay": 0.9, "epochs": 3, "save_optimizer": True}
    adam = {**settings, "plain": False, "args": args}
    outputs = {"output": [str(tmp_path / "parts"), str(tmp_path / "nothing")]}
    stopped = pair({**adam, **outputs, "stop_at": 5})
    # the signal comes after the fifth update: the ranks agree on it in the sixth
    assert [found for found, _ in stopped] == [{"stopped": "checkpoint_6"}] * 2
    assert (tmp_path / "parts/checkpoint_6/metadata.json").is_file()
    pair({**adam, "output": [str(tmp_path / "whole")]})  # in between, so that nothing is left of the stopped run
    resumed = pair({**adam, **outputs, "resume": True})
    assert [found["steps"] for found, _ in resumed] == [12, 12]
    assert not (tmp_path / "nothing").exists()
    for model in ("final_model", "best_model"):
        assert_close(weights(tmp_path / "whole" / model), weights(tmp_path / "parts" / model), 0)
        states = [load_file(tmp_path / run / model / "optimizer.safetensors") for run in ("whole", "parts")]
        assert_close(*states, 0)
    # with another number of ranks the same batches cannot be had
    with pytest.raises(ValueError, match="other number of ranks: was 2 and is 1"):
        rank_worker.build({**adam, **outputs, "args": {**ARGS, "ema_decay": 0.9, "epochs": 3}}).train(
            resume=tmp_path / "parts/checkpoint_6"
        )


def test_a_signal_at_any_point_stops_both_ranks_at_one_update(settings, pair, tmp_path):
    """Within an update of several batches, before and within collectives, while rank 0 writes and rank 1 waits."""
    given = {**settings, "plain": False, "own_sampler": True, "dropout": 0.1}
    # 7 batches are 4 turns, the last without one for rank 1, and 2 updates in each of 2 epochs
    given["args"] = {**ARGS, "gradient_accumulation_steps": 2, "save_every": "epoch", "ema_decay": 0.9}
    given |= {"output": [str(tmp_path / "runs")]}
    # where the signal comes, and how the run ends: the ranks agree on it in the next update, if there is one
    points = {
        (0, "_part_step", 1): "checkpoint_epoch_1",  # in the first batch of the first update
        (1, "_collective", 1): "checkpoint_1",  # while the weights are handed out
        (0, "write_safetensors", 2): "checkpoint_3",  # in the checkpoint of the first epoch
        (1, "_part_step", 6): "finished",  # in the last update
    }
    (found, _), (second, _) = pair({**given, "points": [*points]})
    ends = ["finished", *(end for stopped in points.values() for end in (stopped, "finished"))]
    assert found[0] == second[0] == ends
    assert (found[1]["_part_step"], second[1]["_part_step"]) == (8, 6)
    for number in range(len(points)):
        for model in ("final_model", "best_model"):
            assert_close(weights(tmp_path / "runs/whole" / model), weights(tmp_path / f"runs/{number}" / model), 0)


def test_ranks_that_differ_or_fail_end_together(settings, pair, tmp_path):
    changed = [*settings["data"][0][:-1], {"text": "the dog", "labels": 0}]
    differing = {**settings, "data": [settings["data"][0], changed], "output": [str(tmp_path / "a")]}
    for found, _ in pair(differing):
        assert "expected the same training data on every rank but got rank 0: 25 examples" in found["error"]
    (tmp_path / "b/final_model").mkdir(parents=True)  # which rank 0 alone sees
    taken = {**settings, "output": [str(tmp_path / "b"), str(tmp_path / "c")]}
    for found, _ in pair(taken):
        assert found["error"].startswith("FileExistsError: [train]")


def test_a_loss_that_is_no_number_is_named_where_it_is(settings, pair, tmp_path):
    bad = [dict(example) for example in settings["data"][0]]
    for number in (5, 6, 7):
        bad[number]["labels"] = 7  # a class that the head does not have
    errors = [found["error"] for found, _ in pair({**settings, "data": [bad], "output": [str(tmp_path / "run")]})]
    assert all("NonFiniteLoss: [train] the loss of update" in error for error in errors)
    assert any("Its batch: " in error for error in errors)


def words_of(folder, toy, command):
    """The words of a command; ``DATA`` and ``RUN`` in it are files of the folder."""
    folder.mkdir(exist_ok=True)
    rows = "".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in toy.examples(24))
    (folder / "train.jsonl").write_text(rows)
    names = {"DATA": folder / "train.jsonl", "RUN": folder / "run", "MODEL": toy.folder}
    return [str(names.get(word, word)) for word in command.split()]


def written(folder):
    return {path.name for path in (folder / "run").iterdir()}


def test_the_command_line_prints_and_writes_once(toy, tmp_path):
    # measuring a head of embeddings needs no scikit-learn, which takes seconds to import
    options = "--task contrastive --train DATA --eval DATA --output RUN --epochs 1 --batch-size 4 --no-progress"
    launch = [str(Path(sys.executable).with_name("mlx.launch")), "-n", "2", "-p", str(free_ports(1)[0]), "--"]
    done = subprocess.run(
        [*launch, sys.executable, *words_of(tmp_path, toy, f"-m mlx_bert train --model MODEL {options}")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training    ") == done.stdout.count("Model:   ") == 1
    assert "2 ranks" in done.stdout
    assert {"best_model", "final_model", "history.json"} <= written(tmp_path)


def test_commands_print_and_write_once(pair, toy, tmp_path):
    options = "--train DATA --output RUN --epochs 1 --batch-size 4 --no-progress"  # each rank sets the same part aside
    command = words_of(tmp_path / "classes", toy, f"train --model MODEL {options}")
    (code, printed), other = pair({"command": command})
    assert (code, other) == (0, [0, ""])
    assert [printed.count(text) for text in ("training    ", "2 ranks", "Model:   ")] == [1, 1, 1]
    assert {"best_model", "final_model", "history.json"} <= written(tmp_path / "classes")
    options = "--task few_shot --model MODEL --train DATA --eval DATA --output RUN --max-pairs 16 --no-progress"
    command = words_of(tmp_path / "command", toy, f"train {options} --save-every no")
    (code, printed), other = pair({"command": command})
    assert (code, other) == (0, [0, ""])
    assert [printed.count(text) for text in ("training    ", "confusion matrix", "Model:   ")] == [1, 1, 1]
    assert "final_model" in written(tmp_path / "command")
    options = "--train DATA --test DATA --per-class 2 --output RUN"
    command = words_of(tmp_path / "example", toy, f"examples/train_few_shot.py MODEL {options}")
    (code, printed), other = pair({"command": command})
    assert (code, other) == (0, [0, ""])
    assert [printed.count(text) for text in ("seed 0:", "few-shot        ", "written to")] == [1, 1, 1]
    assert "few_shot_head.safetensors" in written(tmp_path / "example")


# --- what needs no second process -------------------------------------------------------------------------------------


class Ranks:
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [2, 3])
def test_shares_are_all_of_it_and_equally_many(size):
    sampler = LengthBucketSampler(np.arange(1, 26), 8, seed=3)
    for split, count in ((True, 4), (False, -(-4 // size))):
        shares = [RankShares(sampler, Ranks(rank, size), split) for rank in range(size)]
        for epoch in (0, 1):
            parts = [share.batches(epoch) for share in shares]
            assert {len(part) for part in parts} | {len(share) for share in shares} == {count}
            together = np.concatenate([batch.indices for part in parts for batch in part])
            assert sorted(together) == list(range(25))
    # parts of one batch are about equally long
    for parts in zip(*(RankShares(sampler, Ranks(rank, size), True).batches() for rank in range(size)), strict=True):
        longest = [sampler.lengths[part.indices].max() for part in parts if len(part.indices)]
        assert max(longest) - min(longest) < size


def test_tasks_stay_with_their_batches():
    class Tasks:
        def __len__(self):
            return 1

        def batches(self, epoch=0):
            return [BatchIndices(np.arange(5), "intent")]

    assert [batch.task for batch in RankShares(Tasks(), Ranks(1, 2), True).batches()] == ["intent"]


def test_a_world_of_one_does_nothing(monkeypatch, tmp_path):
    import mlx.core as mx

    world = World()
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    arrays = {"a": mx.ones((2,))}
    assert world.total(arrays, [1.5]) == (arrays, [1.5])
    assert world.share({"x": 1}) == {"x": 1}
    assert world.on_main(lambda: 3) == 3
    world.require_same("data", "x")
    (tmp_path / "hosts").write_text("\n")  # what the launcher writes for one process
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert World().size == 1


def test_a_rank_that_cannot_join_says_so(tmp_path):
    script = "import mlx_bert\nfrom mlx_bert.training.distributed import World\n" \
        "try:\n    World()\nexcept ConnectionError as error:\n    print(error)"  # fmt: skip
    env = {**os.environ, "MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "nothing.json")}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "[distributed] rank 0 cannot join the others" in done.stdout


def test_gradients_travel_in_pieces():
    import mlx.core as mx

    arrays = {name: mx.zeros((size, 1 << 20)) for name, size in (("a", 3), ("b", 4), ("c", 2), ("d", 9))}
    assert _chunks(arrays) == [["a", "b"], ["c"], ["d"]]  # 12 and 16, 8, and 36 MiB
