"""``netbox topology`` of real sandboxes."""

from __future__ import annotations

import json
import os
from xml.etree import ElementTree

from tests.e2e.boxes import inspect, running
from tests.support.cli import Cli
from tests.support.host import Neighbour


def test_what_is_drawn_is_what_runs(cli: Cli, outside: Neighbour) -> None:
    cli("network", "create", "front")
    cli("network", "create", "--internal", "inner")
    cli("network", "create", "--driver", "macvlan", "-o", "parent=eth0", "--subnet", outside.network, "lan")
    cli("create", "--name", "asleep", "--network", "lan", "busybox", "true")
    with (
        running(cli, "web", "-p", "18080:80", "--network", "front", "--network", "inner"),
        running(cli, "debug", "--network", "container:web"),
        running(cli, "printer", "--network", "lan"),
        running(cli, "alone", "--network", "none"),
    ):
        found = json.loads(cli("topology", "--format", "json").stdout)
        assert found["host"] == os.uname().nodename
        (uplink,) = found["uplinks"]
        assert (uplink["name"], uplink["gateway"]) == ("eth0", outside.address)
        assert f"{outside.host_address}/24" in uplink["addresses"]
        assert [(item["name"], item["way_out"]) for item in found["networks"]] == [
            ("front", "nat"),
            ("inner", "internal"),
            ("lan", "lan"),
            ("none", "none"),
        ]
        boxes = {item["name"]: item for item in found["boxes"]}
        assert set(boxes) == {"web", "debug", "printer", "alone"}
        assert boxes["debug"]["joined"] == "web"
        planned = inspect(cli, "web")["network"]["endpoints"]
        drawn = {(item["network"], item["interface"], item["addresses"][0], item["link"]) for item in boxes["web"]["attachments"]}
        assert drawn == {(item["network"], item["interface"], item["address"], item["host_interface"]) for item in planned}
        assert [item["network"] for item in boxes["web"]["attachments"] if item["default"]] == ["front"]
        assert boxes["web"]["ports"] == ["18080->80/tcp"]
        assert boxes["printer"]["attachments"][0]["link"] == "eth0"

        text = cli("topology").stdout
        assert "shares the network of web" in text
        assert "18080→80/tcp" in text or "18080->80/tcp" in text
        assert "asleep" not in text
        assert "asleep" in cli("topology", "-a").stdout
        ElementTree.fromstring(cli("topology", "-a", "--format", "svg").stdout)
        assert cli("topology", "--format", "mermaid").stdout.startswith("flowchart LR\n")
        assert cli("topology", "--format", "dot").stdout.startswith("graph ")
    cli("rm", "asleep")
    assert "no sandbox is running" in cli("topology").stdout
    cli("network", "prune", "-f")


def test_a_terminal_without_unicode(cli: Cli, outside: Neighbour) -> None:
    with running(cli, "web", "-p", "18080:80"):
        text = cli("topology", env={"PYTHONIOENCODING": "ascii"}).stdout
        assert text.isascii()
        assert "`- web" in text
