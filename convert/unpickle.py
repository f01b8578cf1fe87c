"""PyTorch's ``.bin`` files without PyTorch, and without ``pickle``: a reader that can name tensors and nothing else.

A ``.bin`` file is a pickle, a small program. Python's own unpickler calls what the program names; even a restricted one
lets it change the state of what is allowed. Here the few instructions that a dictionary of tensors needs are carried
out on plain data, and what they name (``os.system``, ``builtins.eval``, ...) is compared with a short list, never
looked up. Nothing is imported or called on the file's word, and no data is read before it is known to lie in the file.

Two layouts exist: a zip archive (since torch 1.6) and, before, pickles followed by the raw storages. Both are described
by torch/serialization.py. The data of a tensor is a strided view into a storage; storages may be shared.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_PICKLE_BYTES = 4_000_000  # about 16,000 tensors
MAX_DECLARED_RATIO = 8  # bytes of all tensors to bytes of the file; shared storages make it exceed 1
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

# torch's storage classes -> (numpy type, bytes of an element). bfloat16 is read as its bits.
STORAGES = {
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
}
ALLOWED = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    *STORAGES,
}


class RefusedPickle(ValueError):
    """The pickle asks for more than tensors, or for tensors that its file does not hold."""


@dataclass(frozen=True)
class Symbol:
    """A name that the pickle mentions and that is on the list."""

    name: str


@dataclass(frozen=True)
class Storage:
    """``length`` elements of type ``dtype`` from element ``start`` of the storage called ``key``."""

    key: str
    dtype: str
    itemsize: int
    length: int
    start: int = 0


@dataclass(frozen=True)
class View:
    """A tensor: strides and offset in elements, within a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: byte ``position`` of ``path``, strides in elements."""

    path: Path
    position: int
    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a ``.bin`` file, without reading their data.

    Raises:
        ValueError: not such a file, damaged, or one that asks for anything else than tensors.
    """
    try:
        tensors = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except RefusedPickle as error:
        raise RefusedPickle(f"[unpickle] {path} is refused: {error}. Use a safetensors version of the model.") from None
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError, EOFError, OSError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(
            f"[unpickle] {path} is not a PyTorch file that can be read: {reason}. Download it again."
        ) from None
    except (struct.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"[unpickle] {path} is damaged: {error}. Download it again.") from None
    declared, size = sum(math.prod(t.shape) * t.itemsize for t in tensors.values()), path.stat().st_size
    if declared > MAX_DECLARED_RATIO * size:
        raise RefusedPickle(f"[unpickle] {path} is refused: {declared} bytes of tensors in a file of {size}.")
    return tensors


# --- the two layouts --------------------------------------------------------------------------------------------------


def _read_zip(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = {info.filename: info for info in archive.infolist()}
        for info in members.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise RefusedPickle(f"{info.filename!r} is compressed, {info.compress_size} to {info.file_size} bytes")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("expected one data.pkl in the archive")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in members:
            raise RefusedPickle("it is a TorchScript program, not a dictionary of tensors")

        def span(name: str) -> tuple[int, int]:
            """First byte and length of a member. The local header may be longer than the directory says (padding)."""
            info = members[name]
            file.seek(info.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\3\4":
                raise ValueError(f"{name!r} has no local header")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            start = info.header_offset + 30 + name_length + extra_length
            if start + info.file_size > size:
                raise ValueError(f"{name!r} reaches behind the end of the file")
            return start, info.file_size

        def content(name: str) -> bytes:
            start, length = span(name)
            if length > MAX_PICKLE_BYTES:
                raise RefusedPickle(f"{name!r} has {length} bytes, more than {MAX_PICKLE_BYTES}")
            file.seek(start)
            return file.read(length)

        if f"{root}byteorder" in members and content(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        views = _views(_execute(io.BytesIO(content(pickles[0]))))
        positions = {}
        for view in views.values():
            key = view.storage.key
            name = f"{root}data/{key}"
            if name not in members:
                raise ValueError(f"storage {key!r} is missing")
            positions[key] = span(name)
    return _place(path, views, positions)


def _read_legacy(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        if _execute(head) != LEGACY_MAGIC or _execute(head) != LEGACY_PROTOCOL:
            raise ValueError("neither a zip archive nor the older format")
        system = _execute(head)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        views = _views(_execute(head))
        keys = _execute(head)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("its list of storages is malformed")
        itemsize = {view.storage.key: view.storage.itemsize for view in views.values()}
        positions = {}
        start = head.tell()
        for key in keys:
            file.seek(start)
            (length,) = struct.unpack("<q", file.read(8))
            if key not in itemsize:  # belongs to no tensor: its width, hence the next place, is unknown
                raise ValueError(f"storage {key!r} belongs to no tensor")
            nbytes = length * itemsize[key]
            if length < 0 or start + 8 + nbytes > size:
                raise ValueError(f"storage {key!r} reaches behind the end of the file (truncated?)")
            positions[key] = (start + 8, nbytes)
            start += 8 + nbytes
    return _place(path, views, positions)


def _views(state: Any) -> dict[str, View]:
    """What a checkpoint must be: names to tensors."""
    if not isinstance(state, dict):
        raise ValueError(f"expected a dictionary of tensors but got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, View):
            shown = name[:100] if isinstance(name, str) else type(name).__name__
            raise ValueError(f"expected only tensors but {shown!r} is {type(value).__name__}")
    return state


def _place(path: Path, views: dict[str, View], positions: dict[str, tuple[int, int]]) -> dict[str, StoredTensor]:
    tensors = {}
    for name, view in views.items():
        storage = view.storage
        if storage.key not in positions:
            raise ValueError(f"storage {storage.key!r} of {name!r} is missing")
        start, nbytes = positions[storage.key]
        last = sum((length - 1) * stride for length, stride in zip(view.shape, view.strides, strict=True))
        needed = view.offset + last + 1 if math.prod(view.shape) else 0
        if needed > storage.length or (storage.start + storage.length) * storage.itemsize > nbytes:
            raise ValueError(f"{name!r} reaches behind the end of its storage (truncated?)")
        if math.prod(view.shape) > max(storage.length, 1):
            raise RefusedPickle(f"{name!r} repeats a small storage to the shape {view.shape}")
        position = start + (storage.start + view.offset) * storage.itemsize
        tensors[name] = StoredTensor(path, position, storage.dtype, storage.itemsize, view.shape, view.strides)
    return tensors


# --- the instructions -------------------------------------------------------------------------------------------------

_MARK = object()
_PUSH = {  # instructions whose argument, as pickletools parsed it, is the value
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


def _execute(stream: io.BytesIO) -> Any:
    """Carry out one pickle from the stream and return its value, made of plain data, :class:`View` and symbols."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop(kind: type = object) -> Any:
        value = stack.pop()
        if value is _MARK or not isinstance(value, kind):
            raise ValueError(f"expected {kind.__name__} on the stack but got {type(value).__name__}")
        return value

    def pop_to_mark() -> list[Any]:
        items = []
        while (value := stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def top(kind: type) -> Any:
        if not isinstance(stack[-1], kind):
            raise ValueError(f"expected {kind.__name__} on the stack but got {type(stack[-1]).__name__}")
        return stack[-1]

    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _PUSH:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _PUTS:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [pop() for _ in range(int(name[-1]))]
            stack.append(tuple(items[::-1]))
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name == "LIST":
            stack.append(pop_to_mark())
        elif name == "DICT":
            stack.append(_pairs(pop_to_mark()))
        elif name == "APPEND":
            value = pop()
            top(list).append(value)
        elif name == "APPENDS":
            values = pop_to_mark()
            top(list).extend(values)
        elif name == "SETITEM":
            value, key = pop(), pop()
            top(dict)[key] = value
        elif name == "SETITEMS":
            values = pop_to_mark()
            top(dict).update(_pairs(values))
        elif name == "GLOBAL":
            stack.append(_symbol(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = pop(str), pop(str)
            stack.append(_symbol(module, attribute))
        elif name == "BINPERSID":
            stack.append(_storage(pop(tuple)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, symbol = pop(tuple), pop()
            stack.append(_call(symbol, arguments))
        elif name == "BUILD":
            pop()  # attributes such as a state dict's _metadata: not needed
            if not isinstance(stack[-1], dict | View):
                raise RefusedPickle(f"it sets attributes of {_name_of(stack[-1])}")
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            pop_to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise RefusedPickle(f"it uses the instruction {name} {str(argument or '')[:100]!r}")
    return pop()


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _symbol(module: str, attribute: str) -> Symbol:
    name = f"{module}.{attribute}"
    if name not in ALLOWED:
        raise RefusedPickle(f"it asks for {name[:100]}")
    return Symbol(name)


def _name_of(value: Any) -> str:
    return value.name if isinstance(value, Symbol) else type(value).__name__


def _storage(identity: tuple[Any, ...]) -> Storage:
    """``('storage', type, key, location, length)``; 2019's format adds ``(key, start, length)`` of a view or None."""
    kind, symbol, key, _, length, *rest = identity
    if kind != "storage" or not isinstance(symbol, Symbol) or symbol.name not in STORAGES or not isinstance(key, str):
        raise ValueError("a tensor's storage is malformed")
    dtype, itemsize = STORAGES[symbol.name]
    start = 0
    if rest and rest[0] is not None:
        _, start, length = rest[0]
    if not all(isinstance(number, int) and number >= 0 for number in (start, length)):
        raise ValueError("a tensor's storage has a length that is not a natural number")
    return Storage(key, dtype, itemsize, length, start)


def _call(symbol: Any, arguments: tuple[Any, ...]) -> Any:
    """What the few functions on the list do, on descriptions instead of tensors."""
    name = _name_of(symbol)
    if not isinstance(symbol, Symbol) or name in STORAGES:
        raise RefusedPickle(f"it calls {name}")
    if name == "collections.OrderedDict":
        return dict(*arguments)
    if name == "torch.Size":
        return tuple(*arguments)
    if name in ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"):
        if not arguments or not isinstance(arguments[0], View):
            raise ValueError("a parameter holds no tensor")
        return arguments[0]
    storage, offset, shape, strides, *_ = arguments
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("a tensor is malformed")
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise ValueError("a tensor has a shape, stride or offset that is not a natural number")
    if max(shape, default=0) >= 2**31:
        raise ValueError("a tensor has more than 2^31 rows")
    return View(storage, offset, tuple(shape), tuple(strides))
