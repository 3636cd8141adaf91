"""The one file alone: copied to another directory, run from another user's shell, under every interpreter."""

import glob
import os
import stat

import pytest

from tools import scenario
from tools.hosts import COMMANDS, MIB


def interpreters() -> list[str]:
    """Pythons from 3.11 on that this machine has, outside of our own environment."""
    found = sorted(path for path in glob.glob("/usr/bin/python3.1[1-9]") if os.path.exists(path))
    found += sorted(glob.glob("/root/.pyenv/versions/3.1[1-9]*/bin/python3"))
    return found


@pytest.mark.parametrize("python", interpreters())
def test_every_interpreter(cluster, python):
    """The same file starts, as each of its commands."""
    host = cluster("a", data_size=16 * MIB)["a"]
    for command in COMMANDS:
        done = host.run(["env", "-i", "PATH=/usr/bin:/bin", python, "/opt/mars/mars.pyz", command, "--version"])
        assert done.stdout.strip() and done.stderr == "", done


def test_copied_alone_and_used_with_a_bare_environment(cluster):
    """No HOME, umask 077, another folder, relative links: a cluster and a resource work from there."""
    hosts = cluster("a", "b", data_size=64 * MIB)
    a, b = hosts
    for host in hosts:
        host.run(["sh", "-c", "umask 077; mkdir -p '/opt/far away'; mv /opt/mars/mars.pyz '/opt/far away/'; "
                              "rm -r /opt/mars; cd '/opt/far away'; ln -s mars.pyz marsadm; ln -s mars.pyz marsd; "
                              "ln -s marsadm mars-status"])
        host.run(["ln", "-s", "/opt/far away", "/opt/mars"])
    bare = ["env", "-i", "PATH=" + a.environment()["PATH"], "sh", "-c"]
    a.run([*bare, "umask 077; cd /; "
                  f"'/opt/far away/marsadm' create-cluster --ip={a.ip} && '/opt/far away/marsd' start"])
    scenario.create_resource(a, "data")
    token = scenario.new_token(a)
    join = f"./marsadm join-cluster a --ip={b.ip} --ip-a={a.ip} --token={token}"
    b.run([*bare, f"cd '/opt/far away' && {join} && ./marsd start"])
    scenario.join_resource(b, "data")
    a.run(["blkdiscard", "-z", "-l", "1048576", "/dev/mars/data"])
    scenario.wait_equal(a, b, "data")
    assert "data" in a.run([*bare, "cd /; /opt/mars/mars.pyz mars-status"]).stdout


def test_another_user_after_root_with_umask_077(cluster):
    """What root's first run extracted must serve others too: `--version` works for a user without any home."""
    host = cluster("a", data_size=16 * MIB)["a"]
    host.run(["sh", "-c", "umask 077; marsadm --version"])
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i",
              "/usr/bin/python3", "/opt/mars/mars.pyz"]
    assert host.run([*nobody, "marsadm", "--version"]).stdout.strip()
    assert host.run([*nobody, "mars-status", "--version"]).stdout.strip()


def test_extraction_is_root_s_alone(cluster):
    """Nothing that was extracted belongs to, or can be written by, anybody but root."""
    host = cluster("a", data_size=16 * MIB)["a"]
    host.run("marsadm --version")
    top = host.path("/var/cache/mars")
    seen = 0
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            status = os.lstat(os.path.join(folder, name))
            seen += 1
            assert status.st_uid == 0
            assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022, (folder, name)
    assert seen > 10, "the extraction is not where it is documented"


def test_planted_extraction_is_not_used(cluster):
    """A cache folder that another user made beforehand is refused or replaced, never executed from."""
    host = cluster("a", data_size=16 * MIB)["a"]
    clean = host.run("marsadm --version").stdout
    names = os.listdir(host.path("/var/cache/mars"))
    assert names
    host.run(["sh", "-c", "rm -rf /var/cache/mars; mkdir -m 0777 /var/cache/mars; chown 65534 /var/cache/mars"])
    for name in names:
        host.run(["sh", "-c", f"mkdir -p /var/cache/mars/{name}/marsx; cd /var/cache/mars/{name}; "
                              "echo 'open(\"/run/planted\", \"w\")' | tee marsx/__init__.py marsx/__main__.py; "
                              f"cp -r . /run/p; mv /run/p site-packages; chown -R 65534 /var/cache/mars/{name}"])
    done = host.run("marsadm --version", check=False)
    assert not host.path("/run/planted").exists(), "foreign code ran as root"
    assert done.returncode != 0 and "/var/cache/mars" in done.stderr or done.stdout == clean
