"""The name service of user-defined networks: one small process per host state, drawn in ``netbox/docs/names.md``.

``message`` and ``zone`` are pure: questions into answers. ``forwarder`` asks the resolvers of the host. ``listeners`` and ``server`` are
the process. ``files`` is what stands on disk between them and ``hooks``, which is all that the rest of netbox calls.
"""
