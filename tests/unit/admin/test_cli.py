"""The command line: options anywhere, nothing guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from marsx.admin import cli
from marsx.base.errors import UsageError


def test_options_stand_anywhere() -> None:
    """Before, between and behind the words, with = or a blank."""
    call = cli.parse(["--timeout=5", "primary", "--force", "data", "--ip", "10.0.0.1", "--mars-dir=/x"])
    assert (call.command, call.args) == ("primary", ("data",))
    assert call.options.force and call.options.timeout == 5 and call.options.ip == "10.0.0.1"
    assert call.options.dirs == {"mars_dir": "/x"}


@pytest.mark.parametrize("words", [["view"], ["view", "all"], ["force-primary", "data"], ["set-link", "1", "x"]])
def test_plain_words_mean_what_docopt_says(words: list[str]) -> None:
    """What is read without docopt is read as docopt does."""
    assert cli.parse(words) == cli.parse([*words, "--timeout=600"])
    assert cli.Options() == cli.parse(["--window=60"]).options


def test_address_of_a_peer() -> None:
    """--ip-HOST has an open name, with dashes in it too."""
    call = cli.parse(["join-cluster", "my-host", "--ip-my-host=10.0.0.9", "--token=T"])
    assert call.options.peer_ips == {"my-host": "10.0.0.9"} and call.args == ("my-host",)


def test_levels() -> None:
    """--verbose and --parallel with and without a number."""
    assert cli.parse(["view"]).options.verbose == 0 and cli.parse(["view"]).options.parallel == 1
    assert cli.parse(["view", "-v"]).options.verbose == 1
    call = cli.parse(["--verbose=2", "view", "--parallel", "all"])
    assert (call.options.verbose, call.options.parallel, call.args) == (2, 0, ("all",))
    assert cli.parse(["--parallel=3", "up", "all"]).options.parallel == 3


def test_numbers_of_options() -> None:
    """Sizes and seconds; a bare --thresh-logsize is GiB, as of old."""
    options = cli.parse(["view", "--window=5", "--threshold=4K", "--thresh-logsize=1", "--macro=", "--json"]).options
    assert (options.window, options.threshold, options.thresh_logsize) == (5, 4096, 1 << 30)
    assert options.macro == "" and options.json and not options.dry_run
    assert cli.parse(["view", "--thresh-logsize=100M"]).options.thresh_logsize == 100 << 20
    assert cli.parse(["view"]).options.macro is None and cli.parse(["-d", "up", "all"]).options.dry_run


def test_words_say_the_same_again() -> None:
    """What --parallel gives to its children means just the same."""
    line = """up data -f -d --verbose=2 --timeout=2.5 --window=7 --threshold=3000 --thresh-logsize=2 --host=h --json
              --macro=x --ip-my-peer=10.0.0.1 --mars-dir=/m --persist --parallel=3 --thresh-logfiles=4""".split()
    call = cli.parse(line)
    again = cli.parse(["up", "data", *cli.words(call.options)]).options
    assert again == replace(call.options, parallel=1)
    assert cli.words(cli.Options()) == ["--thresh-logsize=5242880K"]


def test_force_prefix() -> None:
    """force-CMD is --force CMD."""
    call = cli.parse(["force-primary", "data"])
    assert call.command == "primary" and call.options.force


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--for", "primary", "data"], "unknown option '--for'"),
        (["--nonsense=3", "view"], "unknown option '--nonsense'"),
        (["view", "-x"], "unknown option '-x'"),
        (["--force=1", "primary", "data"], "takes no value"),
        (["view", "--timeout"], "needs a value"),
        (["view", "--timeout=soon"], "number of seconds"),
        (["view", "--timeout=-1"], "number of seconds"),
        (["view", "--ip-=1.2.3.4"], "unknown option"),
        (["view", "--verbose=much"], "a number is needed"),
        (["view", "--parallel="], "a number is needed"),
        (["view", "--threshold=many"], "not a size"),
        (["view", "--window=-1"], "number of seconds"),
    ],
)
def test_refused(words: list[str], text: str) -> None:
    """One clear reason; an abbreviation is no option."""
    with pytest.raises(UsageError, match=text) as caught:
        cli.parse(words)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("1k", 1000), ("1K", 1024), ("100G", 100 << 30), ("3t", 3 * 10**12), ("2P", 2 << 50)],
)
def test_sizes(text: str, value: int) -> None:
    """Lower case counts by 1000, upper case by 1024."""
    assert cli.parse_size(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "10X", "G", "0x10", "1 G", "٣"])
def test_no_sizes(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(UsageError):
        cli.parse_size(text)
