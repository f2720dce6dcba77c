"""netbox: processes in networks of their own, and every packet explained.

The names below load on first use, so that ``import netbox`` costs nothing: the monitor of a sandbox imports this package too.
"""

__version__ = "0.1.0"

__all__ = ["Engine", "NetboxError", "Sandbox", "SandboxSpec", "__version__"]

_LAZY = {
    "Engine": "netbox.engine",
    "Sandbox": "netbox.engine",
    "SandboxSpec": "netbox.spec",
    "NetboxError": "netbox.errors",
}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netbox.engine import Engine, Sandbox
    from netbox.errors import NetboxError
    from netbox.spec import SandboxSpec


def __getattr__(name: str) -> object:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'netbox' has no attribute {name!r}")
