"""Types of `marstree`: the symlinks of directories."""

Links = list[tuple[str, str | None, int, int]]

def links(paths: list[str], threads: int = 0) -> list[tuple[Links, list[str], int]]: ...
