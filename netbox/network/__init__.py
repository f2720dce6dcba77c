"""The network of sandboxes: modes, addresses, published ports, name service, firewall rules as values.

``manager.NetworkManager`` is what the engine calls. Everything that decides (``ipam``, ``firewall``, ``resolve``, ``describe``) is pure;
what acts goes through ``netbox.kernel``. See ``plan`` for the values that pass between the two.
"""
