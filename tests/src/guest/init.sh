#!/bin/busybox sh
# First process of the guest: finds the machine's root through 9p, lays a memory overlay on it, and
# hands over to the agent. Everything is quiet but failures, which go to the console.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module" || echo "init: $module not loaded"; done </modules/order

fail() { echo "init: $*"; sleep 1; poweroff -f; }

options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$options,ro,cache=loose" root /lower || fail "no root"
mount -t 9p -o "$options,cache=none" share /share || fail "no share"
. /share/guest.env

mount -t tmpfs -o size=70% tmpfs /upper
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /newroot || fail "no overlay"

mkdir -p "/newroot/lib/modules/$KERNEL_RELEASE"
mount -o bind "/newroot$MODULES" "/newroot/lib/modules/$KERNEL_RELEASE" || fail "no modules"
mount -t proc proc /newroot/proc
mount -t sysfs sysfs /newroot/sys
mount -t devtmpfs devtmpfs /newroot/dev
mkdir -p /newroot/dev/pts /newroot/dev/shm
mount -t devpts devpts /newroot/dev/pts
mount -t tmpfs tmpfs /newroot/dev/shm
mount -t tmpfs tmpfs /newroot/run
mkdir -p /newroot/run/lock /newroot/run/drbd /newroot/run/share /newroot/var/lib/drbd
mount -o bind /share /newroot/run/share
mount -t debugfs debugfs /newroot/sys/kernel/debug
exec chroot /newroot /bin/bash /run/share/agent.sh
