"""Names computed from ids: interfaces, chains, cgroups, rule comments. Pure.

An undo needs nothing but the id: whatever outlives a process has a name from here.
"""

from __future__ import annotations

import os
import re
import zlib

INTERFACE_NAME_MAX = 15  # IFNAMSIZ less the NUL, <linux/if.h>
DEFAULT_NETWORK = "bridge"
DEFAULT_BRIDGE = "netbox0"
ID_LENGTH = 64
SHORT_ID_LENGTH = 12
NAME_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")

_ADJECTIVES = (
    "agile amber brave bright calm clear crisp eager early fair fast firm fond fresh gentle glad golden grand keen kind light "
    "lively lucky merry mild neat nimble noble open plain proud quick quiet rapid ready royal sharp silver smart solid steady "
    "still sunny swift tidy true vivid warm wise young"
).split()
_NOUNS = (
    "arc beacon bridge brook canal cedar cloud comet coral delta ember falcon field fjord forest gate glacier harbor heron "
    "hill island juniper lagoon lantern lark maple meadow mesa moon oak orbit otter packet peak pine port prairie quartz "
    "rapids reef ridge river robin signal sparrow spruce summit tide valley willow"
).split()


def new_id() -> str:
    """A random sandbox id: 64 hexadecimal digits, as Docker's, of which the first 12 hold a letter.

    They are the host name of a sandbox that was given none, and one of decimal digits alone may be read as an address (inet_aton(3)).
    """
    while True:
        found = os.urandom(ID_LENGTH // 2).hex()
        if not short_id(found).isdecimal():
            return found


def short_id(sandbox_id: str) -> str:
    """The first 12 digits, which listings show."""
    return sandbox_id[:SHORT_ID_LENGTH]


def generated_name(sandbox_id: str) -> str:
    """A name for a sandbox that was given none, such as ``calm-otter-3f``."""
    number = int(sandbox_id[:12], 16)
    adjective = _ADJECTIVES[number % len(_ADJECTIVES)]
    noun = _NOUNS[number // len(_ADJECTIVES) % len(_NOUNS)]
    return f"{adjective}-{noun}-{sandbox_id[12:16]}"


def valid_name(name: str) -> bool:
    """Whether a sandbox, image or network may be called so."""
    return NAME_PATTERN.fullmatch(name) is not None


def veth(sandbox_id: str, index: int = 0) -> str:
    """The host's end of a sandbox's n-th veth pair: ``nb`` + 10 digits of the id + the index, 15 characters at most."""
    return f"nb{sandbox_id[:10]}{'' if index == 0 else f'.{index}'}"


def bridge(network: str) -> str:
    """The bridge device of a network: ``netbox0`` for the default one, ``nb-`` and a checksum for the others."""
    return DEFAULT_BRIDGE if network == DEFAULT_NETWORK else f"nb-{zlib.crc32(network.encode()):08x}"


def sandbox_owner(sandbox_id: str) -> str:
    """How rules, journal rows and cgroups name the sandbox that they belong to."""
    return f"sandbox:{short_id(sandbox_id)}"


def impairment_owner(sandbox_id: str) -> str:
    """How rules name the sandbox whose link loses packets."""
    return f"impair:{short_id(sandbox_id)}"


def network_owner(network: str) -> str:
    """How rules and journal rows name the network that they belong to."""
    return f"network:{network}"
