"""Files and folders that people take for checkpoints: what they are, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

HEAD = 512

_STARTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it and name the file within"),
    (b"BZh", "is compressed with bzip2; unpack it and name the file within"),
    (b"\xfd7zXZ\x00", "is compressed with xz; unpack it and name the file within"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it and name the file within"),
    (b"Rar!", "is a RAR archive; unpack it and name the file within"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it and name the file within"),
    (b"\x93NUMPY", "is a NumPy array, so data rather than a model; give it with --data"),
    (b"GGUF", "is a GGUF file; give the PyTorch checkpoint that it was made from"),
)


def described(path: Path) -> str | None:
    """What a file that no reader here takes is, and the mend, in one phrase; None where that is not known."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    for start, what in _STARTS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it and name the file within"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "is a web page, probably what a download gave instead of the file; download it again"
    if text.startswith(b"{"):
        return _described_json(path)
    return None


def described_folder(path: Path) -> str | None:
    """What a folder given as MODEL is, and the mend; None where it is just a folder."""
    if (path / ".metadata").is_file() or any(path.glob("*.distcp")):
        return (
            "is a distributed checkpoint in shards; make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} checkpoint.pt"
        )
    shards = sorted([*path.glob("*-of-*.safetensors"), *path.glob("*-of-*.bin"), *path.glob("*.index.json")])
    if shards:
        return f"is a folder of a checkpoint in shards ({shards[0].name}); save its state_dict as one file"
    return None


def _described_json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
        count = len(set(content["weight_map"].values()))
        return f"is the index of a checkpoint in {count} shards; save their tensors together as one state_dict"
    return "is a JSON file, without weights; name the file that holds them"
