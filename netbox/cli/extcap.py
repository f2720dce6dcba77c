"""``netbox extcap``."""
