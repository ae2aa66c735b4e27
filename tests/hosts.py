"""Hosts for tests, made of namespaces on this machine: own addresses, processes, homes and disks.

Every host has namespaces of its own for its network, processes, mounts and name. They are wired to
a switch in one more network namespace, which leads nowhere else. A shell that waits for the end of
its input is each namespace's first process: when this process ends, however it ends, the kernel
ends all that ran on the hosts and takes mounts and links away with them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil
import pytest
from command import ROOT, arguments

NETWORK, FIRST = "198.51.100", 10
"""Addresses for examples (RFC 5737): no machine has them. The hosts are numbered from FIRST on."""

USER, HOME, SHARED = "ubuntu", "/home/ubuntu", "/srv/shared"
"""The user of the hosts is root by another name. All hosts see one folder at the path SHARED."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BOOT = f"""
set -e
hostname "$1"; shared=$2; shift 2
ip link set lo up
mount -t tmpfs tmpfs /mnt
n=0
for seen in "$shared" "$@"; do
  mkdir "/mnt/$n"; mount --bind "$seen" "/mnt/$n"; n=$((n + 1))
done
for empty in /dev/shm /home /run /srv /tmp; do mount -t tmpfs -o mode=1777 tmpfs "$empty"; done
mkdir -p {SHARED} /run/sshd; chmod 755 /run /run/sshd /srv /home; mount --bind /mnt/0 {SHARED}
n=1
for seen in "$@"; do
  mkdir -p "$seen"; mount --bind "/mnt/$n" "$seen"; n=$((n + 1))
done
{{ echo '{USER}:x:0:0::{HOME}:/bin/bash'; cat /etc/passwd; }} > /mnt/passwd
mount --bind /mnt/passwd /etc/passwd
cp -r /etc/skel {HOME}; mkdir -m 700 {HOME}/.ssh
echo up; read -r _
"""
DENIED = ("not permitted", "permission denied")
"""What the system says where it is not this machine's to give. Whatever else fails is a fault."""

SWITCH = "ip link add bridge type bridge && ip link set bridge up && echo up && read -r _"


class Host:
    """A machine of its own, as far as programs can tell."""

    def __init__(self, number: int, init: int, switch: int) -> None:
        self.name, self.port = f"host{number}", f"port{number}"
        self.address = f"{NETWORK}.{number}"
        self._init, self._switch = init, switch
        self.root = Path(f"/proc/{init}/root")
        """Its files, as seen from outside."""
        link = f"ip link add {self.port} type veth peer name eth0 netns {init}"
        _inside(switch, "-n", link)
        _inside(switch, "-n", f"ip link set {self.port} master bridge up")
        # Ray asks for the way to an address on the Internet, to learn its own. Nothing is sent.
        up = "ip link set eth0 up && ip route add default dev eth0"
        _inside(init, "-n", f"ip address add {self.address}/24 dev eth0 && {up}")

    def command(self, command: str, **variables: str) -> list[str]:
        """What runs a shell's command here, as the hosts' user and in their home."""
        given = {"HOME": HOME, "USER": USER, "PATH": PATH, "LANG": "C.UTF-8"} | variables
        enter = ["nsenter", "-t", str(self._init), "-m", "-u", "-n", "-p", "env", "-i"]
        enter += [f"{name}={value}" for name, value in given.items()]
        return [*enter, "bash", "-c", f"cd && {command}"]

    def run(self, command: str, timeout: float = 120, **variables: str) -> str:
        """Runs it to its end; returns what it printed. Fails the test where it fails."""
        done = subprocess.run(
            self.command(command, **variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.fail(f"{self.address}: {command}\nended with {done.returncode}\n{done.stdout}")
        return done.stdout

    def popen(self, command: str, output: IO[str], **variables: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(command, **variables), stdin=subprocess.DEVNULL, stdout=output,
            stderr=output,
        )  # fmt: skip

    def processes(self) -> list[str]:
        """The command lines of what runs here."""
        return [" ".join(arguments(process)) for process in _children(self._init)]

    def kill(self) -> None:
        """SIGKILL to all that runs here."""
        subprocess.run(self.command("kill -9 -1"), capture_output=True, check=False)

    def cut(self) -> None:
        """Pulls the cable out."""
        _inside(self._switch, "-n", f"ip link set {self.port} down")

    def mend(self) -> None:
        _inside(self._switch, "-n", f"ip link set {self.port} up")


def _inside(pid: int, namespaces: str, command: str) -> None:
    enter = ["nsenter", "-t", str(pid), namespaces, "sh", "-c", command]
    done = subprocess.run(enter, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def _first_process(namespaces: Sequence[str], script: str, *given: str) -> Iterator[int]:
    """Namespaces of their own, as long as this block lasts; the first process in them."""
    unshare = ["unshare", "--fork", "--kill-child", *namespaces, "bash", "-c", script, "init"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*unshare, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdin
        assert process.stdout
        try:
            if process.stdout.readline() != b"up\n":
                said.seek(0)
                reason = said.read().strip()
                assert any(word in reason.lower() for word in ("unshare:", *DENIED)), reason
                pytest.skip(f"namespaces cannot be made here: {reason}")
            (init,) = psutil.Process(process.pid).children()
            yield init.pid
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(20)
            finally:
                process.kill()
                process.wait()


def _needed(*programs: str) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("hosts made of namespaces take Linux and root")
    path = os.pathsep.join([os.environ.get("PATH", ""), PATH])
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")


@contextlib.contextmanager
def hosts(count: int, shared: Path, *programs: str) -> Iterator[list[Host]]:
    """So many hosts, wired to each other, that share a folder; nothing is left of them after.

    Skips where they cannot be made, or where one of the programs is missing.
    """
    _needed("ip", "unshare", "nsenter", *programs)
    shared.mkdir(parents=True, exist_ok=True)
    seen = {str(ROOT), sys.prefix, sys.base_prefix}
    hidden = [p for p in sorted(seen) if p.startswith(("/tmp/", "/home/", "/srv/", "/run/"))]
    own = ["--net", "--mount", "--uts", "--pid", "--mount-proc"]
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_first_process(["--net"], SWITCH))
        made = []
        for number in range(FIRST, FIRST + count):
            given = [f"host{number}", str(shared), *hidden]
            init = stack.enter_context(_first_process(own, BOOT, *given))
            made.append(Host(number, init, switch))
        yield made


SSHD = """
HostKey {home}/.ssh/host_key
ListenAddress {address}
AuthorizedKeysFile {home}/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
"""


def serve_ssh(host: Host, public_key: str) -> None:
    """A server of OpenSSH that lets in who has the key, and asks for no other way in."""
    ssh = host.root / HOME[1:] / ".ssh"
    (ssh / "authorized_keys").write_text(public_key)
    (ssh / "sshd_config").write_text(SSHD.format(home=HOME, address=host.address))
    host.run("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/host_key")
    host.run("/usr/sbin/sshd -f ~/.ssh/sshd_config")


def give_venv(host: Host, name: str) -> None:
    """A virtual environment in the host's home that sees the packages of this one, and has its
    programs: what `pip install` would have downloaded. pip is told to download nothing."""
    home = host.root / HOME[1:]
    old, new = sys.prefix, f"{HOME}/{name}"
    site = Path(new, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    packages = shlex.quote(str(Path(old, *site.relative_to(new).parts)))
    host.run(f"{sys.executable} -m venv --without-pip {name} && echo {packages} > {site}/seen.pth")
    for script in Path(old, "bin").iterdir():
        if not script.is_file() or script.is_symlink() or script.name == "clsearch":
            continue
        text = script.read_bytes()
        if text.startswith(b"#!") and f"{old}/bin/python".encode() in text:
            copy = home / name / "bin" / script.name
            copy.write_bytes(text.replace(f"{old}/bin/".encode(), f"{new}/bin/".encode()))
            copy.chmod(0o755)
    pip = home / ".config" / "pip" / "pip.conf"
    pip.parent.mkdir(parents=True)
    # pip reads `false` here as what the option says: no isolation.
    pip.write_text("[global]\nno-index = true\n[install]\nno-build-isolation = false\n")
