"""The virtual machine: qemu without any network device, this machine's files read-only, an empty disk, three serial lines.

The first line is the kernel's console and is kept in a file, the second prints what the tests print, the third tells their exit code.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.vm import initramfs
from tests.vm.kernel import Failed, Kernel

QEMU = "qemu-system-x86_64"
# cgroup version 2 has every controller then, as on a Debian with systemd. A panic ends the machine instead of hanging.
_DISK = 8 << 30  # bytes; only what is written takes room
_KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 cgroup_no_v1=all"


def run(kernel: Kernel, command: Sequence[str], *, memory: int, processors: int, timeout: float) -> int:
    """Starts ``command`` inside, prints what it prints as it comes, and returns its exit code.

    ``memory`` is in MiB, ``timeout`` in seconds for everything. Raises ``Failed`` when the machine ends or is ended before the command.
    """
    with _directory() as directory:
        console, code, archive, disk = (directory / name for name in ("console", "code", "initramfs", "disk"))
        inside = str(Path(__file__).with_name("inside.sh"))
        initramfs.write(archive, kernel, ["/bin/bash", inside, str(kernel.modules), str(kernel.kmod), *command])
        with disk.open("wb") as file:
            file.truncate(_DISK)
        arguments = [
            *(QEMU, "-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"),
            *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", str(processors), "-m", str(memory)),
            *("-kernel", str(kernel.image), "-initrd", str(archive), "-append", _KERNEL_ARGUMENTS),
            *("-virtfs", "local,path=/,mount_tag=machine,security_model=none,readonly=on,multidevs=remap"),
            *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
            *("-chardev", "stdio,id=output,signal=off"),
            *("-serial", f"file:{console}", "-serial", "chardev:output", "-serial", f"file:{code}"),
        ]
        _wait(arguments, timeout, console)
        text = code.read_text().strip() if code.exists() else ""
        if not text.isdigit():
            raise Failed(f"the machine ended before the tests did{_said(console)}")
        return int(text)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="netbox-test-vm."))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _wait(arguments: list[str], timeout: float, console: Path) -> None:
    """Runs qemu to its end, which comes at the latest after ``timeout`` or with this process."""
    try:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    except FileNotFoundError as error:
        raise Failed(f"{QEMU} is not installed: scripts/test-vm does that") from error
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not ready after {timeout:.0f} s{_said(console)}") from error
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise Failed(f"{QEMU} ended with exit code {process.returncode}{_said(console)}")


def _die_with_parent() -> None:
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    os.setpgid(0, 0)  # an interrupt from the terminal is for the process that cleans up


def _said(console: Path) -> str:
    """The end of what the kernel said."""
    text = console.read_text(errors="replace") if console.exists() else ""
    lines = [line for line in text.replace("\r", "").splitlines() if line.strip()][-15:]
    return "; the kernel said:\n    " + "\n    ".join(lines) if lines else ""
