"""What netbox remembers: sandboxes, networks, leases, ports, the journal and events, in one sqlite database."""
