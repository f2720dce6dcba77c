"""The benchmark: netbox beside its peers and beside the kernel's floor, interleaved in one run. ``scripts/bench`` is the entry.

It is not a test and pytest collects nothing here. ``place`` moves everything into namespaces of its own, ``subjects`` are what is measured,
``scenarios`` how, ``report`` prints.
"""
