"""What a user can do wrong: one line on stderr that says what, why and what would do; the exit code; and nothing touched."""

from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netbox.engine import Engine
from tests.e2e.boxes import inspect, running
from tests.support.cli import CHECKOUT, Cli
from tests.support.host import PrivateHost

LONG = "x" * 300
LINK = "/run/link-to-nothing"

# A group is one test. Each line: what is given to netbox | words of the answer.
TABLE = {
    "ports": """
        run -p 0 busybox true                          | port '0': 0 is not between 1 and 65535
        run -p 0:80 busybox true                       | 0 is not between 1 and 65535
        run -p 65536:80 busybox true                   | 65536 is not between 1 and 65535
        run -p 80:65536 busybox true                   | 65536 is not between 1 and 65535
        run -p 80:99999999999999999999 busybox true    | not between 1 and 65535
        run -p -1 busybox true                         | '-1' is not a port
        run -p 90-80:80-90 busybox true                | the range 90-80 runs backwards; write 80-90
        run -p 8080-8090:80-85 busybox true            | differ in length, 11 host ports for 6
        run -p 8080:80 -p 8080:81 busybox true         | want the same host port
        run -p 8080:80 -p 127.0.0.1:8080:81 busybox true | want the same host port
        run -p 8080-8085:80-85 -p 8083:99 busybox true | want the same host port
        run -p abc busybox true                        | 'abc' is not a port
        run -p '' busybox true                         | is not a port
        run -p 8080:80/foo busybox true                | 'foo' is not a protocol
        run -p 999.1.1.1:80:80 busybox true            | not an IPv4 address
        run -p 192.0.2.99:80:80 busybox true           | this host has no such address
        run -p 1:2:3:4:5 busybox true                  | port '1:2:3:4:5'
        run --network none -p 80:80 busybox true       | publish cannot be used with network none
        run --network host -p 80:80 busybox true       | publish cannot be used with network host
    """,
    "addresses": """
        run --ip 10.0.0.999 busybox true               | not an IPv4 address
        run --ip 192.0.2.5 busybox true                | outside the network's subnet 10.
        run --ip fe80::1 busybox true                  | not an IPv4 address
        run --ip6 10.0.0.9 busybox true                | not an IPv6 address
        run --ip6 fe80::1 busybox true                 | a link-local address
        run --ip6 fd00::5 busybox true                 | network bridge has no IPv6
        run --ip6 fd00::5 --network none busybox true  | network none has no addresses
        run -p [fd00::1]:80:80 busybox true            | the sandbox has no IPv6 address
        run -p [fd00::1]:80 busybox true               | no ports behind the address
        run --ip 10.210.0.5 --network none busybox true | ip cannot be used with network none
        run --mac-address 01:00:5e:00:00:01 busybox true | a multicast address
        run --mac-address ff:ff:ff:ff:ff:ff busybox true | a multicast address
        run --mac-address 00:00:00:00:00:00 busybox true | the zero address
        run --mac-address 02:42 busybox true           | not a MAC address
        run --network nosuch busybox true              | no such network: nosuch
        run --network container: busybox true          | is not the name or id of a sandbox
        run --network container:nosuch busybox true    | no such sandbox: nosuch
        run --dns nope busybox true                    | dns 'nope': not an address
        run --dns-search 'a b' busybox true            | dns-search
        run --add-host nope busybox true               | no address
        run --add-host a:999.1.1.1 busybox true        | add-host
        run --hostname bad_host! busybox true          | not a host name
        run --hostname LONG busybox true               | 300 characters
        run --network host --sysctl net.ipv4.ip_forward=1 busybox true | it would change this machine's own network
    """,
    "names": """
        run --name a/b busybox true                    | '/' is not allowed in it
        run --name ../../etc busybox true              | '/' is not allowed in it
        run --name LONG busybox true                   | 300 characters, 64 are allowed
        run --name '' busybox true                     | it is empty
        run --name -x busybox true                     | cannot start with '-'
        run --name 'a b' busybox true                  | ' ' is not allowed in it
        run --name ä busybox true                      | is not allowed in it
        run nosuch true                                | no image 'nosuch'; the images are busybox, host
        run ../etc true                                | not the name of an image
        run LONG true                                  | 300 characters
        run 'a b' true                                 | not the name of an image
        run                                            | no image is given
        run --rootfs /nosuch -- true                   | it is not a directory
        run --rootfs / -- true                         | this machine's own files
        run --rootfs /etc                              | has no default command
        run --rootfs '' -- true                        | rootfs
        run -l '' busybox true                         | label ''
        image import ../x /etc                         | '/' is not allowed in it
        image import host /etc                         | stands for this machine's own root
        image import x /nosuch                         | there is no such file or directory
        image import x /dev/null                       | neither a file nor a directory
        image rm nosuch                                | no image 'nosuch'
        image rm host                                  | cannot be removed
        image inspect nosuch                           | no image 'nosuch'
    """,
    "sizes and limits": """
        run -m 10x busybox true                        | 'x' is not a unit of size
        run -m -1 busybox true                         | cannot be negative
        run -m 1 busybox true                          | too small, it must be at least 6m
        run -m 1e6 busybox true                        | not a size
        run -m '' busybox true                         | not a size
        run -m 99999999999t busybox true               | too large
        run --memory-swap 10m busybox true             | memory-swap needs memory
        run -m 64m --memory-swap 32m busybox true      | is below memory
        run --cpus 0 busybox true                      | out of range
        run --cpus nan busybox true                    | not a number of processors
        run --cpus 9999 busybox true                   | out of range
        run --cpuset-cpus 1-0 busybox true             | runs backwards
        run --cpuset-cpus 4000 busybox true            | processor 4000 is not there
        run --cpu-shares 1 busybox true                | out of range
        run --pids-limit 0 busybox true                | out of range
        run --pids-limit many busybox true             | not a whole number
        run --blkio-weight 5 busybox true              | out of range, 10 to 1000
        run --shm-size 10x busybox true                | 'x' is not a unit of size
        run --storage-opt size=10x host true           | 'x' is not a unit of size
        run --storage-opt size=10m busybox true        | applies to the image host
        run --storage-opt nope busybox true            | storage-opt
        run --log-opt max-size=10x busybox true        | 'x' is not a unit of size
        run --log-opt nope=1 busybox true              | no such option
        run --ulimit nofile busybox true               | unreadable
        run --ulimit nosuch=1 busybox true             | no such limit
        run --ulimit nofile=10:5 busybox true          | is above the hard limit
        run --stop-timeout x busybox true              | not a whole number
        run --stop-signal NOPE busybox true            | no such signal
        update nosuch                                  | nothing to change
    """,
    "privileges": """
        run --cap-add NOPE busybox true                | unknown capability 'NOPE'
        run --cap-drop NOPE busybox true               | unknown capability 'NOPE'
        run --security-opt nope busybox true           | security-opt 'nope': unreadable
        run --security-opt seccomp=/nosuch busybox true | no seccomp profile at /nosuch
        run --security-opt seccomp=/etc/passwd busybox true | seccomp profile /etc/passwd: not JSON
        run --security-opt no-new-privileges=maybe busybox true | neither true nor false
        run --userns nope busybox true                 | not a mode of user namespaces
        run --userns auto --privileged busybox true    | cannot be used with userns auto
        run --sysctl kernel.panic=1 busybox true       | belongs to the whole machine
        run --sysctl foo busybox true                  | not the name of a kernel parameter
        run --sysctl net.ipv4.ip_forward busybox true  | sysctl
        run --sysctl net.nosuch=1 busybox true         | there is no such sysctl
        run --sysctl net.ipv4.ip_forward=abc busybox true | the kernel refuses the value
        run -u nosuch busybox true                     | no user 'nosuch'
        run -u 0:nosuch busybox true                   | no group 'nosuch'
        run -u 99999999999 busybox true                | out of range
        run --device /dev/nosuch busybox true          | there is no such device
        run --device /etc/passwd busybox true          | there is no such device
        run --device-cgroup-rule nope busybox true     | unreadable
    """,
    "files and variables": """
        run -w relative busybox true                   | not an absolute path
        run -w /etc/passwd busybox true                | Not a directory; check the path
        run -v /etc/passwd/x:/y busybox true           | Not a directory; check the path
        run -v LINK:/y busybox true                    | it is a link to nothing
        run --mount type=bind,source=LINK,target=/y busybox true | it is a link to nothing
        run --mount type=bind,source=/etc/passwd,target=/etc busybox true | mount a file over a file
        run -v /etc:/etc/passwd busybox true           | mount a file over a file
        run -e '' busybox true                         | is empty
        run -e =x busybox true                         | is empty
        run --env-file /nosuch busybox true            | cannot be read
        run --env-file /etc busybox true               | env-file '/etc'
        run -v relative busybox true                   | anonymous volumes are not offered
        run -v /etc:relative busybox true              | must be an absolute path
        run -v /etc:/ busybox true                     | the root cannot be mounted over
        run -v /etc:/proc/1 busybox true               | /proc belongs to the kernel
        run -v /etc:/x/../../y busybox true            | '..' in a target
        run -v /etc:/x:zz busybox true                 | 'zz' is not an option
        run -v vol:/x busybox true                     | named volumes are not offered
        run -v /etc:/x -v /usr:/x busybox true         | '/x'
        run --mount type=bind,source=/nosuch,target=/x busybox true | it does not exist
        run --mount type=volume,target=/x busybox true | mounts of type 'volume' are not offered
        run --mount type=bind,target=/x busybox true   | no source
        run --mount nonsense busybox true              | 'nonsense' has no value
        run --tmpfs relative busybox true              | must be an absolute path
        run --tmpfs /x:size=10x busybox true           | 'x' is not a unit of size
        run --cidfile /nosuch/x busybox true           | cannot write cidfile '/nosuch/x'
        run --cidfile /etc/passwd busybox true         | it exists
        run --detach-keys zz busybox true              | 'zz' is not a key
        run -t -i busybox true                         | not a TTY
        run -d -a stdout busybox true                  | contradict each other
    """,
    "commands of netbox": """
        frobnicate                                     | no such command 'frobnicate'
        run --nope busybox                             | no such option '--nope'
        ps --nope                                      | no such option '--nope'
        ps --filter nope                               | filter 'nope'
        ps --filter nope=1                             | no such filter
        ps --filter status=nope                        | no such state; use one of created
        ps --format nope                               | 'nope' is not one of 'table', 'json'
        rename                                         | missing argument
        events --since nonsense                        | not a time
        logs --tail x nosuch                           | not a whole number
        kill -s NOPE nosuch                            | no such signal
        exec nosuch true                               | no such sandbox: nosuch
        start nosuch                                   | no such sandbox: nosuch
        stop nosuch                                    | no such sandbox: nosuch
        kill nosuch                                    | no such sandbox: nosuch
        restart nosuch                                 | no such sandbox: nosuch
        pause nosuch                                   | no such sandbox: nosuch
        unpause nosuch                                 | no such sandbox: nosuch
        wait nosuch                                    | no such sandbox: nosuch
        rename nosuch x                                | no such sandbox: nosuch
        rm nosuch                                      | no such sandbox: nosuch
        logs nosuch                                    | no such sandbox: nosuch
        attach nosuch                                  | no such sandbox: nosuch
        port nosuch                                    | no such sandbox: nosuch
        stats nosuch                                   | no such sandbox: nosuch
        top nosuch                                     | no such sandbox: nosuch
        show nosuch                                    | no such sandbox: nosuch
        update -m 64m nosuch                           | no such sandbox: nosuch
        completion csh                                 | 'csh' is not one of
    """,
}


def lines(group: str) -> list[tuple[list[str], str]]:
    rows = [row.rpartition("|") for row in TABLE[group].strip().splitlines()]
    return [(shlex.split(command.replace("LONG", LONG).replace("LINK", LINK)), words.strip()) for command, _, words in rows]


def complaint(result: subprocess.CompletedProcess[str], words: str, code: int = 125) -> str | None:
    """What is wrong with how a command failed; None if all is as it should be."""
    error = result.stderr
    if result.returncode != code:
        return f"exit code {result.returncode}"
    if error.count("\n") != 1 or not error.endswith("\n") or not error.startswith("netbox"):
        return "not one line"
    if words not in error:
        return f"without {words!r}"
    if "; " not in error and code == 125:
        return "does not say what would do"
    if len(error) > 400 or "Traceback" in error or "bug" in error or "Error" in error:
        return "not for a user"
    return "writes to stdout" if result.stdout not in ("", "[]\n") else None  # inspect gives a document in any case, as Docker's does


@pytest.mark.parametrize("group", list(TABLE))
def test_bad_input(cli: Cli, private_host: PrivateHost, group: str) -> None:
    """The leak check of each test sees that nothing was made; here, that nothing at all was remembered."""

    def attempt(row: tuple[list[str], str]) -> str | None:
        result = cli(*row[0], check=None)
        wrong = complaint(result, row[1])
        return f"{shlex.join(row[0])[:80]}: {wrong}\n    {result.stdout}{result.stderr}" if wrong else None

    os.symlink("/nosuch", LINK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrong = [text for text in pool.map(attempt, lines(group)) if text]
    assert not wrong, "\n" + "\n".join(wrong)
    assert cli("ps", "-aq").stdout == ""
    assert not list(private_host.run.glob("sandboxes/*"))


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["nosuch"], 127, "cannot execute 'nosuch': executable file not found in PATH"),
        (["/no/such"], 127, "cannot execute '/no/such': no such file"),
        (["/etc"], 126, "cannot execute '/etc': permission denied"),
        (["/etc/passwd"], 126, "cannot execute '/etc/passwd': permission denied"),
    ],
)
@pytest.mark.parametrize("verb", [("run", "--rm"), ("run", "-d"), ("run", "--rm", "--init"), ("run", "--rm", "--userns", "auto")])
def test_commands_that_cannot_run(cli: Cli, verb: tuple[str, ...], command: list[str], code: int, words: str) -> None:
    result = cli(*verb, "-p", "18080:80", "busybox", *command, check=code)
    assert complaint(result, words, code) is None, result.stderr
    assert cli("ps", "-aq").stdout == ""


def test_commands_that_cannot_run_in_a_running_sandbox(cli: Cli) -> None:
    with running(cli, "box"):
        for command, code, words in (
            (["nosuch"], 127, "not found in PATH"),
            (["/etc"], 126, "permission denied"),
            (["-u", "no", "true"], 125, ""),
        ):
            options, rest = (command[:2], command[2:]) if command[0] == "-u" else ([], command)
            result = cli("exec", *options, "box", *rest, check=code)
            assert complaint(result, words, code) is None, result.stderr
        result = cli("exec", "-w", "/nosuch", "box", "true", check=None)
        assert result.returncode in (125, 126, 127)
        assert len(result.stderr.splitlines()) == 1


def test_a_verb_that_does_not_fit_the_state(cli: Cli) -> None:
    cli("create", "--name", "made", "busybox", "true")
    with running(cli, "runs"):
        for line, words in (
            ("rm runs", "it runs; stop it first"),
            ("start runs", "runs already"),
            ("unpause runs", "cannot unpause runs: it is running"),
            ("rename runs made", "the name made is taken"),
            ("run --name runs busybox true", "the name runs is taken"),
            *((f"{verb} made", "start it first") for verb in ("kill", "pause", "stats --no-stream", "top", "attach")),
            ("exec made true", "start it first"),
        ):
            result = cli(*line.split(), check=125)
            assert complaint(result, words) is None, f"{line}: {result.stderr}"
        cli("pause", "runs")
        for line in ("pause runs", "exec runs true"):
            result = cli(*line.split(), check=125)
            assert complaint(result, "paused") is None, f"{line}: {result.stderr}"
    cli("rm", "made")


def test_an_ambiguous_id(cli: Cli, engine: Engine) -> None:
    """Seventeen sandboxes: two ids begin with the same digit."""
    ids = [engine.create("busybox", "true").id for _ in range(17)]
    digit = next(first for first in "0123456789abcdef" if sum(one.startswith(first) for one in ids) > 1)
    result = cli("inspect", digit, check=125)
    assert f"{digit} is ambiguous: " in result.stderr
    assert "give more digits" in result.stderr
    cli("rm", *ids)


# -- who may not -------------------------------------------------------------------------------------------------------------------------


def as_nobody(cli: Cli, private_host: PrivateHost, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command run by the user nobody, who may read this checkout and its interpreter, wherever they are."""
    hidden = sorted({str(part) for path in (sys.base_prefix, sys.prefix, CHECKOUT) for part in [*Path(path).parents, Path(path)]
                     if not part.stat().st_mode & 0o001})  # fmt: skip
    shown = (f"mkdir -p $0/{number}/u $0/{number}/w; chmod 755 $0/{number}/u; "
             f"mount -t overlay -o lowerdir={path},upperdir=$0/{number}/u,workdir=$0/{number}/w overlay {path}"
             for number, path in enumerate(hidden))  # fmt: skip
    script = "; ".join(["set -e", *shown, "cd /", 'exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'])
    command = ["unshare", "--mount", "sh", "-c", script, str(private_host.base / "shown"), *cli.command, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=cli.environment(), check=False, input="")
    finally:
        subprocess.run(["rm", "-rf", str(private_host.base / "shown")], check=True, timeout=60)


@pytest.mark.parametrize("fresh", [True, False])
def test_without_root(cli: Cli, private_host: PrivateHost, fresh: bool) -> None:
    if not fresh:
        cli("create", "--name", "box", "busybox", "true")
    for line in ("run --rm busybox true", "run -d -p 80 host true", "create busybox true", "gc", "image rm busybox", "image import x /etc"):
        result = as_nobody(cli, private_host, *line.split())
        assert complaint(result, "root") is None, f"{line}: {result.stdout}{result.stderr}"
    if not fresh:
        for line in ("ps", "rm -f box", "start box", "exec box true", "inspect box", "logs box", "info", "events --since 1h --until 0s"):
            result = as_nobody(cli, private_host, *line.split())
            assert result.returncode == 125, line
            assert "run it as root (sudo)" in result.stderr, f"{line}: {result.stderr}"
            assert len(result.stderr.splitlines()) == 1, result.stderr
        assert inspect(cli, "box")["state"] == "created"
        cli("rm", "box")
    for line in ("--help", "version", "run --help"):
        assert as_nobody(cli, private_host, *line.split()).returncode == 0, line


def test_check_without_root_says_so(cli: Cli, private_host: PrivateHost) -> None:
    result = as_nobody(cli, private_host, "check")
    assert (result.returncode, result.stderr) == (1, "")
    assert "✗ root" in result.stdout
    assert "netbox cannot run here" in result.stdout


# -- disks and databases ------------------------------------------------------------------------------------------------------------------


class TestDisk:
    @pytest.fixture
    def small(self, private_host: PrivateHost) -> Path:
        """``NETBOX_ROOT`` on a disk of 6 MiB with the image busybox on it."""
        subprocess.run(["mount", "-o", "remount,size=6m", str(private_host.root)], check=True, timeout=60)
        return private_host.root

    @staticmethod
    def fill(directory: Path) -> Path:
        file = directory / "filler.lock"  # a name that the leak check passes over, should the test fail
        with file.open("wb", buffering=0) as stream:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        stream.write(b"x" * size)
                except OSError:
                    continue
        return file

    def test_full_from_the_start(self, cli: Cli, small: Path) -> None:
        filler = self.fill(small)
        for line in ("run --rm busybox true", "run -d host sleep 9", "create host true", "image import x /etc/apt"):
            result = cli(*line.split(), check=125)
            assert complaint(result, "") is None, f"{line}: {result.stderr}"
            assert any(word in result.stderr for word in ("full", "No space left", "disk I/O error")), result.stderr
        assert cli("ps", "-aq", check=None).stdout == ""
        filler.unlink()
        cli("run", "--rm", "busybox", "true")

    def test_full_later(self, cli: Cli, small: Path) -> None:
        """What runs goes on; every command says in one line that the disk is full; with space again, all is as before."""
        cli("run", "-d", "--name", "box", "-p", "18080:80", "busybox", "sh", "-c", "head -c 100000 /dev/urandom > /big; exec sleep 100")
        pid = inspect(cli, "box")["pid"]
        filler = self.fill(small)
        for line in ("ps", "run --rm busybox true", "stop box", "rm -f box", "gc", "create host true"):
            result = cli(*line.split(), check=125)
            assert complaint(result, "the disk is full") is None, f"{line}: {result.stdout}{result.stderr}"
        assert os.path.exists(f"/proc/{pid}")
        filler.unlink()
        cli("gc")
        assert cli("exec", "box", "echo", "alive").stdout == "alive\n"
        cli("rm", "-f", "box")

    def test_an_image_that_does_not_fit(self, cli: Cli, small: Path, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "big").write_bytes(bytes(8 << 20))
        result = cli("image", "import", "big", str(tmp_path / "tree"), check=125)
        assert complaint(result, "No space left on device; free some space") is None, result.stderr
        assert cli("image", "ls", "-q").stdout == "host\n"

    def test_directories_that_cannot_be(self, cli: Cli, private_host: PrivateHost) -> None:
        (private_host.base / "file").touch()
        for name in ("NETBOX_ROOT", "NETBOX_RUN"):
            for value in (f"{private_host.base}/file/below", "/proc/nosuch"):
                result = cli("run", "--rm", "busybox", "true", check=125, env={name: value})
                assert complaint(result, value) is None, result.stderr

    def test_a_read_only_disk(self, cli: Cli, private_host: PrivateHost) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(private_host.root)], check=True, timeout=60)
        try:
            for line in ("run --rm busybox true", "create host true", "image import x /etc/apt"):
                result = cli(*line.split(), check=125)
                assert complaint(result, "") is None, f"{line}: {result.stderr}"
                assert "ead-only" in result.stderr, result.stderr
            assert cli("ps", "-aq").stdout == ""
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(private_host.root)], check=True, timeout=60)


class TestDatabase:
    LINES = (
        "ps",
        "ps -a",
        "run --rm busybox true",
        "create busybox true",
        "rm box",
        "gc",
        "inspect box",
        "start box",
        "events --until 0s",
        "info",
    )

    def check_all(self, cli: Cli, words: str) -> None:
        for line in self.LINES:
            result = cli(*line.split(), check=125)
            lines = result.stderr.splitlines()
            assert len(lines) == 1, f"{line}: {result.stderr}"
            assert words in lines[0], f"{line}: {result.stderr}"
            assert "; " in lines[0], f"{line}: {result.stderr}"
            assert result.stdout.strip() in ("", "[]"), line

    def test_of_a_newer_version(self, cli: Cli, private_host: PrivateHost) -> None:
        cli("create", "--name", "box", "busybox", "true")
        with sqlite3.connect(private_host.root / "state.db") as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            connection.execute(f"PRAGMA user_version = {version + 1}")
        connection.close()
        self.check_all(cli, f"is of version {version + 1}, this netbox knows version {version}; use the netbox that wrote it")
        with sqlite3.connect(private_host.root / "state.db") as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        cli("rm", "box")  # it is as it was

    def test_that_is_none(self, cli: Cli, private_host: PrivateHost) -> None:
        (private_host.root / "state.db").write_bytes(b"no database" * 1000)
        self.check_all(cli, "is damaged: file is not a database; move it away")
        (private_host.root / "state.db").unlink()
        cli("run", "--rm", "busybox", "true")

    def test_that_is_damaged(self, cli: Cli, private_host: PrivateHost) -> None:
        cli("create", "--name", "box", "busybox", "true")
        database = private_host.root / "state.db"
        content = database.read_bytes()
        pages = len(content) // 4096
        assert pages > 3
        assert not database.with_name("state.db-wal").exists()
        database.write_bytes(content[:4096] + b"\xff" * 4096 * (pages - 1))
        result = cli("ps", "-a", check=125)
        assert complaint(result, "is damaged: ") is None, result.stderr
        database.write_bytes(content)
        cli("rm", "box")

    def test_that_is_a_directory(self, cli: Cli, private_host: PrivateHost) -> None:
        (private_host.root / "state.db").mkdir()
        result = cli("run", "--rm", "busybox", "true", check=125)
        assert complaint(result, "cannot use the database") is None, result.stderr
        (private_host.root / "state.db").rmdir()
