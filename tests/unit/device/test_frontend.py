"""What may be the name, size, block size of a device: the worker's requests are checked by these before any use."""
from __future__ import annotations

import errno

import pytest

from marsx.device import frontend


@pytest.mark.parametrize("name", ["a", "_x", "data-1", "A" * 63, "0"])
def test_good_names(name: str) -> None:
    assert frontend.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".", "..", "a/b", "a.b", "a b", "a\n", "A" * 64, "ä", "a\0", None, 7])
def test_bad_names(name: object) -> None:
    """A name becomes a file in /dev/mars: nothing that could lead elsewhere."""
    with pytest.raises(OSError) as caught:
        frontend.check_name(name)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("size", [512, 4096, 5 << 40, frontend.FILE_SIZE])
def test_good_sizes(size: int) -> None:
    assert frontend.check_size(size) == size


@pytest.mark.parametrize("size", [0, -512, 511, 513, frontend.FILE_SIZE + 512, 1.0, "512", True, None])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(OSError):
        frontend.check_size(size)


@pytest.mark.parametrize(("size", "good"), [(512, True), (4096, True), (0, False), (3000, False), (8192, False),
                                            (True, False), ("512", False)])
def test_block_sizes(size: object, good: bool) -> None:
    if good:
        assert frontend.check_block_size(size) == size
    else:
        with pytest.raises(OSError):
            frontend.check_block_size(size)


@pytest.mark.parametrize("clones", [0, 65, -1, "2", True, None])
def test_bad_clones(clones: object) -> None:
    with pytest.raises(OSError):
        frontend.check_clones(clones)
