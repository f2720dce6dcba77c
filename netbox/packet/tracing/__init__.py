"""Following packets through the kernel: ``trace`` (one probe), ``watch`` (a sandbox's traffic), ``drops`` (what the kernel throws away).

The values are in ``netbox.packet.tracing.values``.
"""
