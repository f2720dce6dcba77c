#!/bin/busybox sh
# The first process, in the initramfs: the machine outside is the root file system, read-only, with a tmpfs for what changes.
bb=/bin/busybox
fail() {
    $bb echo "netbox-vm: $*" >/dev/ttyS1
    $bb poweroff -f
}
$bb mount -t devtmpfs dev /dev || fail "no devices"
for module in /modules/*; do
    $bb insmod "$module" || fail "cannot load $module"
done
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose machine /machine || fail "cannot mount the machine's files"
$bb mount -t tmpfs -o mode=0755,size=80% changes /changes || fail "no tmpfs"
$bb mkdir /changes/upper /changes/scratch
$bb chmod 755 /changes/upper
$bb mount -t overlay -o lowerdir=/machine,upperdir=/changes/upper,workdir=/changes/scratch root /root || fail "cannot put a tmpfs above"
$bb mount --move /dev /root/dev || fail "cannot move the devices"
. /command
exec $bb switch_root /root "$@"
