"""The way into a network namespace and back, when it is interrupted."""

from __future__ import annotations

import os

import pytest

from netbox.kernel import namespaces, syscalls


@pytest.mark.parametrize(("error", "moves"), [(KeyboardInterrupt(), ["there", "home"]), (OSError(22, "Invalid argument"), ["there"])])
def test_who_does_not_get_in_is_at_home(monkeypatch: pytest.MonkeyPatch, error: BaseException, moves: list[str]) -> None:
    """An interrupt is noticed after the call, a call that fails has moved nobody."""
    target, done = os.open("/", os.O_RDONLY), []

    def setns(fd: int, flags: int) -> None:
        done.append("there" if fd == target else "home")
        if fd == target:
            raise error

    monkeypatch.setattr(syscalls, "setns", setns)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(type(error)), namespaces.inside_netns(target):
        pass
    assert done == moves
    assert os.listdir("/proc/self/fd") == before
    os.close(target)
