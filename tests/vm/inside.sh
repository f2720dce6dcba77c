#!/usr/bin/env bash
# The first process in the machine's root: mounts what every Debian has, runs the tests, tells their exit code and switches the machine off.
# Usage: inside.sh MODULES KMOD COMMAND...; the environment and the directory are set by the command.
exec >/dev/ttyS1 2>&1 </dev/null
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
modules=$1
kmod=$2
shift 2

set -e
trap 'echo "netbox-vm: the machine cannot be prepared" >/dev/ttyS1; busybox poweroff -f' ERR
# Modules are loaded by the kernel itself when they are used, as everywhere.
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mkdir -p /dev/pts /dev/shm /dev/mqueue /lib/modules
ln -s /proc/self/fd /dev/fd # as udev does
for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%:*}" "/dev/${number#*:}"; done
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /run
mkdir -m 1777 /run/lock
mount --bind "$modules" /lib/modules
[[ -e /sbin/modprobe ]] || ln -s "$kmod" /sbin/modprobe
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/system.slice/tests.service # as systemd does: processes only in leaves, every controller for those below the root
echo 1 >/sys/fs/cgroup/system.slice/tests.service/cgroup.procs
echo "+cpuset +cpu +io +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf
mount -t tracefs -o nosuid,nodev,noexec tracefs /sys/kernel/tracing
modprobe virtio_blk
mkfs.ext4 -q -F -m 0 /dev/vda
mkdir -p /var/lib/netbox
mount /dev/vda /var/lib/netbox
mkdir /var/lib/netbox/tests # see tests/support/host.py
mount --make-rshared /
ip link set lo up
hostname netbox-vm
stty -F /dev/ttyS1 raw -echo
trap - ERR
set +e

# No terminal, as anywhere where output is kept. Waiting as process 1 reaps who loses its parent meanwhile.
{
    "$@"
    echo $? >/dev/ttyS2
} 2>&1 | cat &
wait $!
busybox poweroff -f
