"""Where the policy files that ship with netbox lie.

An installed package carries them as ``netbox/_policies``; a checkout has them in ``policies`` beside the package.
"""

from __future__ import annotations

import os

from netbox.errors import StateError

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_PLACES = (os.path.join(_PACKAGE, "_policies"), os.path.join(os.path.dirname(_PACKAGE), "policies"))


def directory() -> str:
    """The directory with ``network``, ``seccomp`` and ``profiles``. Raises StateError when the installation lacks it."""
    for place in _PLACES:
        if os.path.isdir(place):
            return place
    raise StateError(f"the policy files of netbox are not in {' nor in '.join(_PLACES)}", "install netbox again")


def shipped(*parts: str) -> str:
    """The path of one shipped file, such as ``shipped("seccomp", "default.json")``. Raises StateError when it is not there."""
    path = os.path.join(directory(), *parts)
    if not os.path.isfile(path):
        raise StateError(f"the policy file {path} is missing", "install netbox again")
    return path


def seccomp_default() -> str:
    """The path of the default seccomp profile."""
    return shipped("seccomp", "default.json")
