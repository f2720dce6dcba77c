"""Recording packets: rings in the chosen namespaces, one pcapng file over all of them, a line for each packet on the terminal."""
