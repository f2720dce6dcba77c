"""Runs tests on Debian's own kernel in a virtual machine: ``scripts/test-vm``."""
