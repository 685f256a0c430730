#!/bin/sh
# A command in the userland of an image, on a copy in memory that is gone afterwards. Runs inside
# namespaces of its own (see lab/image.py).
#
# usage: shell.sh WORK IMAGE BINDS COMMAND...
#   BINDS  number of pairs that follow it: SOURCE TARGET, to be seen inside
set -eu

work=$1 image=$2 binds=$3
shift 3

mount -t tmpfs -o mode=0755 tmpfs "$work"
root=$work/root
mkdir "$root"
debugfs -R "rdump / $root" "$image" 2>"$work/log" || { cat "$work/log" >&2; exit 125; }
if [ ! -x "$root/bin/sh" ]; then
	echo "the image has no /bin/sh" >&2
	exit 125
fi
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
if [ -e /etc/resolv.conf ]; then
	cp -L /etc/resolv.conf "$root/etc/resolv.conf"
fi
while [ "$binds" -gt 0 ]; do
	mkdir -p "$root$2"
	mount --rbind "$1" "$root$2"
	shift 2
	binds=$((binds - 1))
done
exec chroot "$root" "$@"
