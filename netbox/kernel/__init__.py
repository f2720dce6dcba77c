"""One module per kernel facility: primitive arguments in, ``OSError`` or a netbox error out.

Nothing here knows what a sandbox is. ``netlink`` is the only importer of pyroute2, ``iptables`` the only one of python-iptables.
"""
