"""Proof that networks work on this machine: sandboxes of every mode, built for the moment, and packets between them.

``stage`` what is built and how it goes again, ``checks`` what each mode promises, ``run`` the course of it, ``formats`` TAP and JUnit.
"""
