"""What `make deps` installs beyond what is needed: nothing it brings starts, and what cannot be had costs a line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import deps


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine without the wanted programs, on which root installs: `ran` is what it was told, `broken` fails."""
    found = SimpleNamespace(ran=[], broken=set(), policy=tmp_path / "policy-rc.d", policies=[])

    def run(words: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        found.ran.append(words)
        if words[0] == "apt-get":
            found.policies.append(found.policy.read_text() if found.policy.exists() else "")
        failed = words[-1] in found.broken
        said = "Reading...\nE: Unable to locate package\n" if failed else "Setting up\n"
        return subprocess.CompletedProcess(words, 100 if failed else 0, said)

    monkeypatch.setattr(deps, "POLICY", found.policy)
    monkeypatch.setattr(deps, "is_there", lambda what: what == "apt-get")
    monkeypatch.setattr(deps.os, "geteuid", lambda: 0)
    monkeypatch.setattr(deps.subprocess, "run", run)
    return found


def test_services_do_not_start(machine: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """While a package with a service is unpacked nothing may be started; afterwards it is off, and the policy gone."""
    deps.install_wanted()
    packages = [words[-1] for words in machine.ran if words[0] == "apt-get"]
    assert packages == list(deps.WANTED.values()) and not machine.policy.exists()
    assert dict(zip(packages, machine.policies, strict=True)) == {
        name: "#!/bin/sh\nexit 101\n" if name in deps.SERVICES else "" for name in packages}
    assert all(
        ["update-rc.d", name, "disable"] in machine.ran for name in deps.SERVICES)
    assert capsys.readouterr().out.count("installed") == len(packages)


def test_a_policy_of_the_machine_stays(machine: SimpleNamespace) -> None:
    """It is neither changed nor removed."""
    machine.policy.write_text("own")
    deps.install_wanted()
    assert machine.policy.read_text() == "own" and set(machine.policies) == {"own"}


def test_what_cannot_be_had(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, and the others come all the same; without root one line for all."""
    machine.broken.add("prometheus")
    deps.install_wanted()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "deps: prometheus: not installed (Unable to locate package), some tests will be skipped"
    assert lines[1:] == [f"deps: {name}: installed" for name in list(deps.WANTED.values())[1:]]
    monkeypatch.setattr(deps.os, "geteuid", lambda: 1000)
    machine.ran.clear()
    deps.install_wanted()
    assert machine.ran == [] and len(capsys.readouterr().out.splitlines()) == 1
