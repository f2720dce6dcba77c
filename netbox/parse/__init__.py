"""From text to the values of ``netbox.spec``: docker's syntax, checked before anything is touched.

    text          quoting, whole numbers, lists             addresses     IP, MAC, host names, network modes
    quantities    sizes, durations, times, signals          mounts        -v, --mount, --tmpfs
    ports         -p                                        environment   -e, --env-file, labels
    limits        resources, ulimits, sysctls, devices      names         names, users, security and log options, filters
    networks      --network, network create
    request       all of them together: build_spec

Every mistake is a ``UsageError`` of one line: what, why, what would do.
"""

from __future__ import annotations

from netbox.parse.limits import check_resources, parse_resources
from netbox.parse.names import parse_filters, parse_name, parse_user, parse_working_dir
from netbox.parse.networks import build_network, make_attachment
from netbox.parse.ports import format_port, parse_port
from netbox.parse.quantities import format_signal, format_size, parse_duration, parse_signal, parse_size, parse_time
from netbox.parse.request import RunOptions, build_spec, parse_stop_timeout

__all__ = [
    "RunOptions",
    "build_network",
    "build_spec",
    "check_resources",
    "format_port",
    "format_signal",
    "format_size",
    "make_attachment",
    "parse_duration",
    "parse_filters",
    "parse_name",
    "parse_port",
    "parse_resources",
    "parse_signal",
    "parse_size",
    "parse_stop_timeout",
    "parse_time",
    "parse_user",
    "parse_working_dir",
]
