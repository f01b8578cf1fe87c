"""PyTorch's .bin files: read like torch.load reads them, and never obeyed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from convert.unpickle import LEGACY_MAGIC, LEGACY_PROTOCOL, RefusedPickle, read_tensors
from convert.weights import open_weights

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(state, path: Path, zipped: bool = True) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return path


def zip_with(path: Path, pickled: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", data)
    return path


def legacy_with(path: Path, pickled: bytes) -> Path:
    system = {"protocol_version": LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, system))
    path.write_bytes(head + pickled + pickle.dumps([], 2))
    return path


@FORMATS
def test_reads_what_torch_wrote(tmp_path, zipped):
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    state = OrderedDict(
        float32=base,
        transposed=base.t(),
        strided=base[1::2, ::3],
        tied=base,
        parameter=torch.nn.Parameter(torch.randn(3)),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        float64=torch.randn(2, 3, dtype=torch.float64),
        float16=torch.randn(5).half(),
        bfloat16=torch.randn(4, 3).bfloat16().t(),
        int64=torch.arange(-3, 4),
        int32=torch.arange(4, dtype=torch.int32),
        int16=torch.arange(4, dtype=torch.int16),
        int8=torch.tensor([-128, 127], dtype=torch.int8),
        uint8=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
    )
    state._metadata = {"": {"version": 1}}
    path = save(state, tmp_path / "pytorch_model.bin", zipped)
    wanted = torch.load(path, weights_only=True)
    entries = open_weights(tmp_path)
    assert entries.keys() == wanted.keys()
    for name, entry in entries.items():
        array = entry.load()
        assert (array.shape, array.dtype) == (entry.shape, entry.dtype), name
        expected = wanted[name].detach()
        assert str(array.dtype).removeprefix("mlx.core.").rstrip("_") == str(expected.dtype).removeprefix("torch.")
        with mx.stream(mx.cpu):
            values = np.array(array.astype(mx.float64 if name == "float64" else mx.float32))
        np.testing.assert_array_equal(
            values, expected.to(torch.float64 if name == "float64" else torch.float32).numpy()
        )


@FORMATS
def test_reads_a_whole_model(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    save(model.state_dict(), tmp_path / "pytorch_model.bin", zipped)
    entries = open_weights(tmp_path)
    assert entries.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        np.testing.assert_array_equal(np.array(entries[name].load()), expected.numpy())


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def attacks(sentinel: Path) -> dict[str, tuple[object, str]]:
    touch = f"touch {sentinel}"
    write = f"open({str(sentinel)!r}, 'w')"
    return {
        "os.system": (Call(os.system, touch), "asks for posix.system"),
        "eval": (Call(eval, write), "asks for (__builtin__|builtins).eval"),
        "exec": (Call(exec, write), "asks for (__builtin__|builtins).exec"),
        "popen": (Call(subprocess.Popen, ["touch", str(sentinel)]), r"asks for (subprocess|commands)\.Popen"),
        "getattr": (Call(getattr, Call(__import__, "os"), "system"), "asks for (__builtin__|builtins).getattr"),
        "nested in a dictionary": ({"weight": {"deep": [Call(os.system, touch)]}}, "asks for posix.system"),
        "nested in an allowed call": (Call(OrderedDict, Call(eval, f"[({write}, 1)]")), "eval"),
        "nested in a parameter": (Call(torch.nn.Parameter, Call(eval, write)), "eval"),
        "argument of itself": (Call(eval, Call(eval, f"{write!r}")), "eval"),
        "torch.load again": (Call(torch.load, str(sentinel)), "asks for torch.serialization.load"),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("layout", [zip_with, legacy_with])
@pytest.mark.parametrize("name", attacks(Path("x")))
def test_attack_is_refused_by_name_and_not_carried_out(tmp_path, layout, name, protocol):
    sentinel = tmp_path / "sentinel"
    attack, message = attacks(sentinel)[name]
    path = layout(tmp_path / "pytorch_model.bin", pickle.dumps(attack, protocol))
    with pytest.raises(RefusedPickle, match=message):
        read_tensors(path)
    assert not sentinel.exists()


def test_attacks_are_real(tmp_path):
    """The same bytes given to pickle do harm: the test above would notice."""
    for name in ("os.system", "eval", "nested in a dictionary", "nested in an allowed call"):
        sentinel = tmp_path / name.replace(" ", "")
        pickle.loads(pickle.dumps(attacks(sentinel)[name][0], 2))
        assert sentinel.exists()


def test_the_literal_name_os_system_is_refused(tmp_path):
    path = zip_with(tmp_path / "x.bin", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(RefusedPickle, match=r"asks for os\.system"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"(S'true'\nios\nsystem\n.", "instruction INST"),
        (b"(cos\nsystem\nS'true'\no.", r"asks for os\.system"),
        (b"(ccollections\nOrderedDict\no.", "instruction OBJ"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"Pkey\n.", "instruction PERSID"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"ccollections\nOrderedDict\n}S'__init__'\nNsb.", "sets attributes of collections.OrderedDict"),
        (b"ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        (b"ccollections\nOrderedDict\n)R)R.", "calls dict"),
        (b"\x8c\x02os\x8c\x06system\x93.", r"asks for os\.system"),
    ],
)
def test_instruction_is_refused(tmp_path, code, message):
    with pytest.raises(RefusedPickle, match=message):
        read_tensors(zip_with(tmp_path / "x.bin", code))


def test_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(RefusedPickle, match=r"data\.pkl' is compressed, \d+ to 50000000 bytes"):
        read_tensors(path)


def test_many_views_of_one_storage_are_refused(tmp_path):
    block = torch.zeros(1000)
    path = save({f"w{n}": block for n in range(500)}, tmp_path / "x.bin")
    with pytest.raises(RefusedPickle, match="bytes of tensors in a file of"):
        read_tensors(path)


def test_expanded_tensor_is_refused(tmp_path):
    path = save({"w": torch.zeros(1).expand(1 << 30)}, tmp_path / "x.bin")
    with pytest.raises(RefusedPickle, match="repeats a small storage"):
        read_tensors(path)


def test_oversized_pickle_is_refused(tmp_path):
    path = zip_with(tmp_path / "x.bin", b"]" * 4_000_001)
    with pytest.raises(RefusedPickle, match="has 4000001 bytes, more than"):
        read_tensors(path)


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ValueError, match=r"TorchScript|is compressed|asks for"):
        read_tensors(path)


def test_forged_storage_length_is_refused(tmp_path):
    """A tensor of four gigabytes in a file of a kilobyte: the storage says so, the file can't hold it."""
    path = save({"w": torch.zeros(7)}, tmp_path / "good.bin")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(data for name, data in members.items() if name.endswith("data.pkl"))
    forged = pickled.replace(b"K\x07", b"\x8a\x04\x00\x00\x00\x40")
    assert forged != pickled
    bad = tmp_path / "bad.bin"
    with zipfile.ZipFile(bad, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, forged if data is pickled else data)
    with pytest.raises(ValueError, match="behind the end of its storage"):
        read_tensors(bad)


@FORMATS
def test_truncated_file(tmp_path, zipped):
    path = save({"w": torch.randn(100, 100)}, tmp_path / "x.bin", zipped)
    content = path.read_bytes()
    for length in (0, 1, 10, 200, len(content) // 2, len(content) - 8):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"Download it again|Use a safetensors version"):
            read_tensors(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "expected a dictionary of tensors but got list"),
        ({"epoch": 3}, "'epoch' is int"),
        ({"model": {"w": 1}}, "'model' is dict"),
        ({1: 2}, "expected only tensors"),
    ],
)
@FORMATS
def test_something_else_than_a_state_dict(tmp_path, zipped, state, message):
    with pytest.raises(ValueError, match=message):
        read_tensors(save(state, tmp_path / "x.bin", zipped))


def test_big_endian_is_refused(tmp_path):
    path = zip_with(tmp_path / "x.bin", pickle.dumps({}, 2), byteorder=b"big")
    with pytest.raises(ValueError, match="big-endian"):
        read_tensors(path)


def test_a_storage_that_is_missing(tmp_path):
    path = save({"w": torch.zeros(3)}, tmp_path / "good.bin")
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with pytest.raises(ValueError, match="storage '0' is missing"):
        read_tensors(zip_with(tmp_path / "bad.bin", pickled))


def test_not_a_pickle_at_all(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ValueError, match="is not a PyTorch file that can be read"):
        read_tensors(path)


def test_unclosed_nesting_ends_soon(tmp_path):
    """A hundred thousand open lists: no recursion anywhere."""
    stream = io.BytesIO()
    stream.write(b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(ValueError, match="expected a dictionary of tensors but got list"):
        read_tensors(zip_with(tmp_path / "x.bin", stream.getvalue()))
