"""Probes: one question to the network, one answer in plain words.

``values`` what is asked and what came back, ``api`` the functions for programs, ``run`` the worker process as its users see it, ``worker``
that process itself. Only the worker imports scapy.
"""
