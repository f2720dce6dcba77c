# shellcheck shell=bash disable=SC2034
# Shared by the scripts beside it: words on the screen, packages, the virtual environment. Sourced by bash.

set -euo pipefail
umask 022
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CHECKOUT=$PWD
VENV=$CHECKOUT/.venv
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
LOG=$(mktemp -t netbox-script.XXXXXX)
trap 'rm -f "$LOG"' EXIT

# What netbox needs to run. libnftables1 is the firewall where the legacy tables of iptables are not used; libseccomp2 compiles the system call filter,
# libpcap0.8 the filters of captures.
RUN_PACKAGES=(iptables libnftables1 iproute2 busybox-static tini libseccomp2 libpcap0.8 curl ca-certificates)
# What the tests use beside it: real terminals, user namespaces, archives of every kind, a reader of captures, and programs that live beside netbox.
TEST_PACKAGES=(nftables tmux util-linux xz-utils bzip2 zstd tshark ufw docker.io podman netavark
    firewalld libvirt-daemon libvirt-clients dnsmasq-base)
# What scripts/test-vm runs Debian's kernel in.
VM_PACKAGES=(qemu-system-x86)

BOLD='' DIM='' GREEN='' RED='' PLAIN=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
fi

title() { printf '\n%s%s%s\n\n' "$BOLD" "$*" "$PLAIN"; }
line() { printf '  %s✓%s %-13s %s\n' "$GREEN" "$PLAIN" "$1" "$2"; }
note() { printf '  %s%s%s\n' "$DIM" "$*" "$PLAIN"; }
die() {
    printf '  %s✗%s %s\n' "$RED" "$PLAIN" "$1" >&2
    [[ -z ${2:-} ]] || printf '    %s\n' "$2" >&2
    exit 1
}

# quietly WHAT COMMAND...: runs a command, its output in a log that is shown when it fails.
quietly() {
    local what=$1 start=$SECONDS
    shift
    if [[ -t 1 ]]; then printf '  %s… %s%s' "$DIM" "$what" "$PLAIN"; fi
    local code=0
    "$@" >"$LOG" 2>&1 </dev/null || code=$?
    if [[ -t 1 ]]; then printf '\r\e[K'; fi
    TOOK=$((SECONDS - start))
    if ((code)); then
        tail -n 40 "$LOG" | sed 's/^/    /' >&2
        die "$what failed (exit code $code): $*"
    fi
}

need_root() {
    [[ $(id -u) == 0 ]] || die "this needs root" "sudo $0"
}

# without_services COMMAND...: no service of a package that the command installs starts, now or with the machine: dockerd and firewalld would
# change the machine's own firewall. (policy-rc.d is what Debian's packages ask before they start something.)
without_services() (
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    enabled() { find /etc/systemd/system -type l 2>/dev/null | sort; }
    before=$(enabled)
    "$@"
    comm -13 <(echo "$before") <(enabled) | xargs -r -d '\n' rm -f
)

# packages NAME...: installs the Debian packages that are missing, and asks the network only then.
packages() {
    local missing=() name
    command -v dpkg-query >/dev/null || die "this is not Debian or one of its kin" "install by hand: $*"
    for name in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
    done
    if ((${#missing[@]} == 0)); then
        line packages "all there"
        return
    fi
    [[ $(id -u) == 0 ]] || die "missing packages: ${missing[*]}" "sudo apt-get install ${missing[*]}"
    quietly "packages: reading the lists" apt-get update -q
    quietly "packages: installing ${missing[*]}" without_services apt-get install -q -y --no-install-recommends "${missing[@]}"
    line packages "installed ${missing[*]}"
}

# A Python from 3.11 to 3.13: that of PATH if it fits, else another one. Prints the real interpreter, not a version manager's shim.
find_python() {
    local name
    for name in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        "$name" - 2>/dev/null <<'PYTHON' && return
import os, sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(1)
print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
PYTHON
    done
    die "no Python from 3.11 to 3.13 was found" "apt-get install python3"
}

# python_packages: the Debian packages that PYTHON still needs, to make a virtual environment and to build python-iptables.
python_packages() {
    printf 'gcc libc6-dev'
    [[ $PYTHON == /usr/bin/* ]] || return 0
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || printf ' python3-venv'
    "$PYTHON" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || printf ' python3-dev'
}

# environment [EXTRA]: the virtual environment with netbox from this checkout. Does nothing when it is up to date.
environment() {
    local extra=${1:-} stamp
    stamp="$PYTHON $(sha256sum pyproject.toml setup.py | cut -c 1-64 | tr '\n' ' ')$CHECKOUT"
    local have
    have=$(cat "$VENV/stamp" 2>/dev/null || true)
    if [[ $have == "$stamp dev" || $have == "$stamp $extra" ]] && "$VENV/bin/python" -c 'import netbox' 2>/dev/null; then
        line environment ".venv is up to date"
        return
    fi
    local took=0
    quietly "environment: making .venv" "$PYTHON" -m venv --clear "$VENV"
    quietly "environment: installing netbox and its libraries" "$VENV/bin/pip" install -q -e ".${extra:+[$extra]}"
    took=$TOOK
    # Now, not at the first start, and also where PYTHONDONTWRITEBYTECODE would have every start compile everything.
    quietly "environment: compiling" "$VENV/bin/python" -m compileall -q netbox
    printf '%s %s' "$stamp" "$extra" >"$VENV/stamp"
    line environment ".venv with $("$VENV/bin/python" -V) ($took s)"
}
