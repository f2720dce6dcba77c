"""A context of libnftables of its own: what belongs to it (tables with ``flags owner``) stays as long as it does."""

from __future__ import annotations

from typing import Any

from netbox.errors import FirewallError
from netbox.kernel import nftables

_STATELESS, _HANDLE, _NUMERIC_PRIORITY, _TERSE = 1 << 2, 1 << 3, 1 << 8, 1 << 11  # NFT_CTX_OUTPUT_*


class NftablesContext:
    """Made in the calling thread's network namespace, where its socket stays. Not for several threads.

    Raises:
        Unsupported: libnftables is missing.
        FirewallError: no memory, or no socket.
    """

    def __init__(self) -> None:
        self._library = nftables.load()
        self._context: Any = self._library.nft_ctx_new(0)
        if not self._context:
            raise FirewallError("libnftables cannot be used: no memory, or no netlink socket")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str, handles: bool = False) -> str:
        """Runs commands as one transaction and returns what they print. Raises ``FirewallError``, ``NoPermission``."""
        flags = _STATELESS | _NUMERIC_PRIORITY | _TERSE | (_HANDLE if handles else 0)
        self._library.nft_ctx_output_set_flags(self._context, flags)
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: str = self._library.nft_ctx_get_output_buffer(self._context).decode(errors="replace")
        errors: str = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
        if failed:
            raise nftables.refusal(errors)
        return output

    def close(self) -> None:
        """Closes its socket: the kernel takes away what belongs to it."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None
