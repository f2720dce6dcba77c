"""The judgement and the printing of ``netbox check``, on observations made up here."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from netbox.cli import check as cli_check
from netbox.engine import check
from netbox.engine.checks import host
from netbox.engine.checks.catalogue import CATALOGUE, Fact, Observation, judge, usable
from netbox.errors import HostError, Unsupported
from netbox.kernel import probe
from netbox.settings import Settings

KEYS = [key for rows in CATALOGUE.values() for row in rows for key in row.keys]
ALL_THERE = {key: Observation("ok") for key in KEYS}


def fact(facts: list[Fact], name: str) -> Fact:
    return next(each for each in facts if each.name == name)


# -- judgement -----------------------------------------------------------------------------------------------------------------------------


def test_groups() -> None:
    assert list(CATALOGUE) == ["machine", "namespaces", "cgroups", "network", "firewall", "file systems", "security", "debugging"]
    assert len(KEYS) == len(set(KEYS))
    for rows in CATALOGUE.values():
        assert all(row.name and row.purpose and row.remedy and row.keys for row in rows)
        assert len({row.name for row in rows}) == len(rows)


def test_everything_there() -> None:
    facts = judge(ALL_THERE)
    assert usable(facts)
    assert {each.state for each in facts} == {"ok"}
    assert {each.remedy for each in facts} == {""}


def test_nothing_observed_is_not_usable() -> None:
    facts = judge({})
    assert not usable(facts)
    assert {each.state for each in facts} == {"missing"}
    assert all(each.remedy for each in facts)


@pytest.mark.parametrize("row", [row for rows in CATALOGUE.values() for row in rows], ids=lambda row: row.name)
def test_only_what_is_required_decides(row: object) -> None:
    assert hasattr(row, "keys")
    keys: tuple[str, ...] = row.keys
    for key in keys:
        backend = row.backend or "iptables"  # type: ignore[attr-defined]
        facts = judge({**ALL_THERE, "firewall.backend": Observation("ok", f"{backend}: why"), key: Observation("missing")})
        assert [each.name for each in facts if each.state != "ok"] == [row.name]  # type: ignore[attr-defined]
        assert usable(facts) is not row.required  # type: ignore[attr-defined]
        assert usable(judge({**ALL_THERE, key: Observation("limited")}))


def test_the_worst_observation_decides_and_is_named() -> None:
    observed = {
        **ALL_THERE,
        "firewall.udp": Observation("missing", "No such file or directory"),
        "firewall.conntrack": Observation("limited", "old"),
    }
    found = fact(judge(observed), "matches")
    assert (found.state, found.detail) == ("missing", "udp: No such file or directory")


def test_the_same_detail_is_said_once() -> None:
    refused = Observation("missing", "Operation not permitted", errno.EPERM)
    found = fact(judge({**ALL_THERE, "firewall.filter": refused, "firewall.nat": refused}), "ip_tables")
    assert found.detail == "filter, nat: Operation not permitted"


def test_packages_are_named_as_pip_knows_them() -> None:
    observed = {**ALL_THERE, "python.pyseccomp": Observation("missing"), "python.pyroute2": Observation("missing")}
    found = fact(judge(observed), "python packages")
    assert (found.detail, found.remedy) == ("pyroute2, pyseccomp", "pip install pyroute2 pyseccomp")
    assert fact(judge({**ALL_THERE, "python.iptc": Observation("missing")}), "iptables package").detail == "python-iptables"


@pytest.mark.parametrize(("backend", "key", "needed"), [
    ("iptables", "firewall.nat", True), ("nftables", "firewall.nat", False), ("nftables", "python.iptc", False),
    ("iptables", "tool.libnftables", False), ("nftables", "tool.libnftables", True),
])  # fmt: skip
def test_only_the_chosen_firewall_backend_is_needed(backend: str, key: str, needed: bool) -> None:
    observed = {**ALL_THERE, "firewall.backend": Observation("ok", f"{backend}: why"), key: Observation("missing")}
    assert usable(judge(observed)) is not needed


def test_a_refusal_asks_for_rights_and_not_for_a_kernel_option() -> None:
    refused = Observation("missing", "Operation not permitted", errno.EPERM)
    as_root = judge({**ALL_THERE, "namespace.pid": refused})
    assert "--privileged" in fact(as_root, "pid").remedy
    as_user = judge({**ALL_THERE, "namespace.pid": refused, "host.root": Observation("missing", "this is uid 1000")})
    assert fact(as_user, "pid").remedy == "run it as root (sudo)"
    absent = judge({**ALL_THERE, "namespace.pid": Observation("missing", "Invalid argument", errno.EINVAL)})
    assert fact(absent, "pid").remedy == "CONFIG_PID_NS=y"


def test_an_answer_for_a_whole_group() -> None:
    observed = {key: value for key, value in ALL_THERE.items() if not key.startswith("mount.")}
    observed["mount.*"] = Observation("missing", "Operation not permitted", errno.EPERM)
    assert fact(judge(observed), "overlay").detail == "Operation not permitted"
    assert fact(judge(observed), "devpts").detail == "Operation not permitted"


def test_an_observer_may_know_a_better_remedy() -> None:
    found = fact(judge({**ALL_THERE, "cgroup.blkio": Observation("missing", "no disk", remedy="buy one")}), "block I/O")
    assert found.remedy == "buy one"


# -- printing ------------------------------------------------------------------------------------------------------------------------------


def sample() -> list[Fact]:
    return judge(
        {
            **ALL_THERE,
            "host.kernel": Observation("ok", "Linux 6.1"),
            "network.netem": Observation("missing", "Specified qdisc kind is unknown", errno.ENOENT),
            "security.capabilities": Observation("limited", "this process lacks SYS_RESOURCE"),
            "mount.overlay": Observation("missing", "No such device", errno.ENODEV),
        }
    )


def test_table_is_aligned_by_groups() -> None:
    lines = cli_check.render(sample(), 110).splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == list(CATALOGUE)
    rows = [line for line in lines if line[2:3] in ("✓", "✗", "\N{EN DASH}")]
    assert len(rows) == sum(map(len, CATALOGUE.values()))
    column = rows[0].index("namespaces, links")
    assert {row[column - 3 : column] for row in rows} == {"   "}
    assert all(row[column] != " " for row in rows)
    assert max(map(len, lines)) <= 110


def test_marks_and_remedies() -> None:
    lines = cli_check.render(sample(), 110).splitlines()

    def after(name: str) -> tuple[str, str]:
        index = next(index for index, line in enumerate(lines) if line[4:].startswith(f"{name} "))
        return lines[index][2], lines[index + 1].strip()

    assert after("overlay") == ("✗", "No such device → CONFIG_OVERLAY_FS=y")
    assert after("netem") == ("\N{EN DASH}", "Specified qdisc kind is unknown → CONFIG_NET_SCH_NETEM=y")
    assert after("capabilities") == ("\N{EN DASH}", "this process lacks SYS_RESOURCE → start netbox with full root")
    assert after("kernel")[0] == "✓"
    assert next(line for line in lines if line[4:].startswith("kernel ")).endswith("Linux 6.1")


@pytest.mark.parametrize("width", [40, 60, 80])
def test_narrow_terminals(width: int) -> None:
    text = cli_check.render(sample(), width)
    assert "CONFIG_NET_SCH_NETEM=y" in text


def test_summary() -> None:
    total = sum(map(len, CATALOGUE.values()))
    assert cli_check.summary(judge(ALL_THERE), True) == f"netbox can run here: {total} of {total} there"
    needed = cli_check.summary(sample(), False)
    assert needed == f"netbox cannot run here: {total - 3} of {total} there; needed and missing: overlay"
    extras = judge({**ALL_THERE, "network.netem": Observation("missing")})
    assert cli_check.summary(extras, True).endswith("; not all there, and not needed: netem")


@pytest.mark.parametrize(("facts", "code"), [(judge(ALL_THERE), 0), (sample(), 1)])
def test_command(monkeypatch: pytest.MonkeyPatch, facts: list[Fact], code: int) -> None:
    monkeypatch.setattr(check, "facts", lambda: facts)
    result = CliRunner().invoke(cli_check.command, ["--format", "json"], standalone_mode=False)
    assert result.return_value == code
    document = json.loads(result.stdout)
    assert document["usable"] is (code == 0)
    assert document["facts"][0] == {
        "group": "machine",
        "name": "root",
        "state": "ok",
        "required": True,
        "purpose": "namespaces, links and rules are root's",
        "detail": "",
        "remedy": "",
    }
    table = CliRunner().invoke(cli_check.command, [], standalone_mode=False)
    assert table.return_value == code
    assert "\x1b" not in table.stdout
    assert table.stdout.splitlines()[-1].startswith("netbox can run here" if code == 0 else "netbox cannot run here")


# -- observing -----------------------------------------------------------------------------------------------------------------------------


def test_state_directory_is_looked_at_where_it_will_be_made(tmp_path: Path) -> None:
    found = host._state_directory(str(tmp_path / "not" / "yet"))
    assert found.state in ("ok", "limited")
    assert list(tmp_path.iterdir()) == []
    assert host._state_directory("/proc/sys/kernel/not/yet") == Observation("missing", "/proc/sys/kernel cannot be written", errno.EACCES)


def test_file_system() -> None:
    assert host.file_system("/proc") == 0x9FA0  # PROC_SUPER_MAGIC
    assert host.file_system("/proc/there/is/none") == 0


def test_cgroups_that_are_not_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise Unsupported("no cgroup hierarchy is mounted", "mount one")

    monkeypatch.setattr(host, "detect", refuse)
    assert host._cgroups() == {"cgroup.hierarchy": Observation("missing", "no cgroup hierarchy is mounted", remedy="mount one")}


def test_probes_that_fail_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_START", "raise SystemExit('no ' + {root!r})")
    with pytest.raises(HostError, match=r"the probes of the kernel failed: no /"):
        check.facts(Settings())


def test_probes_that_hang_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_START", "import time; time.sleep(60) # {root}")
    monkeypatch.setattr(host, "_PROBE_TIME", 0.2)
    with pytest.raises(HostError, match="did not end within"):
        check.facts(Settings())


# -- probing -------------------------------------------------------------------------------------------------------------------------------


def test_outcomes() -> None:
    def refuse() -> str:
        raise OSError(errno.EPERM, "Operation not permitted")

    def limit() -> str:
        raise probe.Limited("half of it")

    assert probe.outcome(lambda: "ABI 7") == ["ok", "ABI 7", 0]
    assert probe.outcome(lambda: None) == ["ok", "", 0]
    assert probe.outcome(refuse) == ["missing", "Operation not permitted", errno.EPERM]
    assert probe.outcome(limit) == ["limited", "half of it", 0]


@pytest.fixture
def modules(tmp_path: Path) -> probe.Modules:
    directory = tmp_path / "lib/modules/6.1.0"
    directory.mkdir(parents=True)
    (directory / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\nkernel/net/ipv4/netfilter/ip_tables.ko\n")
    (directory / "modules.dep").write_text(
        "kernel/drivers/net/veth.ko.xz:\nkernel/net/bridge/bridge.ko: kernel/net/stp.ko\nkernel/net/sched/sch_netem.ko:\n"
    )
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("bridge 1 0 - Live 0x0\nsch_netem 1 0 - Live 0x0\n")
    return probe.Modules("6.1.0", f"{tmp_path}/")


@pytest.mark.parametrize(
    ("name", "waits"), [("overlay", False), ("ip_tables", False), ("veth", True), ("bridge", False), ("sch-netem", False), ("ifb", False)]
)
def test_modules_that_would_be_loaded(modules: probe.Modules, name: str, waits: bool) -> None:
    assert modules.waits(name) is waits


def test_a_probe_that_would_load_a_module_is_not_run(modules: probe.Modules) -> None:
    group = probe.Group(modules)
    assert not group.probe("network.veth", lambda: pytest.fail("it was run"), "bridge", "veth")
    assert group.answers["network.veth"] == ["ok", "the module veth is loaded when it is needed", 0]
    assert group.probe("network.bridge", lambda: None, "bridge")
    assert group.answers["network.bridge"] == ["ok", "", 0]
