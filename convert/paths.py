"""Names that a checkpoint gives to files, checked: a downloaded folder must not reach outside itself."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def inside(root: Path, name: str) -> Path:
    """The path of ``name`` under ``root``, which need not exist.

    The Hub's cache stores a snapshot as links into the ``blobs`` folder of the same repository; those are followed.

    Raises:
        ValueError: ``name`` is absolute, climbs out with ``..`` or is a link to elsewhere.
    """
    parts = PurePosixPath(name).parts
    if "\\" in name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in parts or ":" in (parts or ("",))[0]:
        raise ValueError(f"[convert] expected a path inside {root} but got {name!r}. Refused.")
    path = root.joinpath(*parts)
    absolute = root.absolute()
    allowed = [root.resolve()]
    for snapshot in (absolute, absolute.parent):
        if snapshot.parent.name == "snapshots":
            allowed.append((snapshot.parent.parent / "blobs").resolve())
    if not any(path.resolve().is_relative_to(folder) for folder in allowed):
        raise ValueError(f"[convert] {path} is a link to a place outside {root}. Refused; copy the file there instead.")
    return path
