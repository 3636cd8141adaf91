"""One fuzz input: a target, its parameters, its files. As a file: zlib over JSON, so that corpus files stay small."""
from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).resolve().parent / "corpus"
SUFFIX = ".case"


@dataclass
class Case:
    """`why` says in a few words how the input was made."""

    target: str
    params: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    why: str = ""

    def pack(self, level: int = 9) -> bytes:
        """The case as the contents of a file."""
        files = {name: base64.b64encode(data).decode() for name, data in self.files.items()}
        text = json.dumps({"target": self.target, "params": self.params, "why": self.why, "files": files})
        return zlib.compress(text.encode(), level)

    @classmethod
    def parse(cls, data: bytes) -> Case:
        """Inverse of pack()."""
        row = json.loads(zlib.decompress(data))
        files = {name: base64.b64decode(text) for name, text in row["files"].items()}
        return cls(row["target"], row["params"], files, row["why"])

    @classmethod
    def load(cls, path: Path) -> Case:
        """The case in a file."""
        return cls.parse(path.read_bytes())

    def save(self, path: Path) -> None:
        """Into a file."""
        path.write_bytes(self.pack())


def corpus() -> list[Path]:
    """All committed cases."""
    return sorted(CORPUS.glob(f"*{SUFFIX}"))
