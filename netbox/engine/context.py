"""What every verb of the engine works with: settings, store, cgroups, network, images. Each is made on first use."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from netbox.errors import NoPermission
from netbox.settings import Settings
from netbox.state.store import Store

if TYPE_CHECKING:
    from netbox.engine.background import Background
    from netbox.image.store import ImageStore
    from netbox.kernel.cgroups import Cgroups
    from netbox.network.manager import NetworkManager
    from netbox.network.undo import UndoContext
    from netbox.runtime.helper import Helper
    from netbox.runtime.launcher import Launcher
    from netbox.runtime.spawner import Spawner


class Context:
    """Shared by an ``Engine`` and its sandboxes. ``spawner`` and ``background`` are set while the engine has them."""

    def __init__(self, settings: Settings, prespawned: Helper | None = None) -> None:
        self.settings = settings
        self.store = Store(settings)
        self.spawner: Spawner | None = None
        self.background: Background | None = None
        self._prespawned = prespawned

    def launcher(self) -> Launcher:
        """One start."""
        from netbox.runtime.launcher import Launcher

        return Launcher(self.helper("monitor"))

    def helper(self, kind: str) -> Helper:
        """The process that was started ahead, or a new one."""
        from netbox.runtime.helper import Helper

        helper = self._prespawned
        if helper is None or helper.kind != kind:
            return Helper.start(kind, self.spawner)
        self._prespawned = None
        return helper

    def close(self) -> None:
        """Ends the warm process and the one made ahead that nobody used, closes the database."""
        spawner, self.spawner = self.spawner, None
        if spawner is not None:
            spawner.close()
        if self._prespawned is not None:
            self._prespawned.end()
            self._prespawned = None
        self.store.close()

    @cached_property
    def cgroups(self) -> Cgroups:
        """The cgroup hierarchies of this host."""
        from netbox.kernel import cgroups

        return cgroups.detect()

    @cached_property
    def network(self) -> NetworkManager:
        """The network layer."""
        from netbox.network.manager import NetworkManager

        return NetworkManager(self.settings, self.store)

    def has_used(self, part: str) -> bool:
        """Whether ``cgroups``, ``network`` or ``images`` was made yet."""
        return part in vars(self)

    @cached_property
    def images(self) -> ImageStore:
        """The images."""
        from netbox.image.store import ImageStore

        return ImageStore(self.settings)

    @cached_property
    def network_undo(self) -> UndoContext:
        """What the network layer's undo handlers need."""
        return self.network.undo_context()

    def require_root(self, operation: str) -> None:
        """Raises:
        NoPermission: the caller is not root.
        """
        if os.geteuid() != 0:
            raise NoPermission(f"cannot {operation}: netbox needs root for namespaces, mounts and firewall rules", "run it with sudo")
