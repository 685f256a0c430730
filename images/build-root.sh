#!/bin/sh
# Make a root file system image. Runs inside namespaces of its own (see lab/image.py), so that
# whatever it mounts is gone with it, however it ends.
#
# usage: build-root.sh WORK tmpfs|disk OUT HEADROOM_BYTES UUID MMDEBSTRAP-ARGUMENT...
#   WORK   an empty folder; with "tmpfs" nothing of it ever reaches the disk
#   OUT    a folder that gets root.ext4 and dpkg-status
#   SOURCE_DATE_EPOCH must be set: no file is newer.
# The MMDEBSTRAP-ARGUMENTs name WORK/root as the target.
set -eu

work=$1 where=$2 out=$3 headroom=$4 uuid=$5
shift 5

if [ "$where" = tmpfs ]; then
	mount -t tmpfs -o mode=0755 tmpfs "$work"
fi
mkdir "$work/tmp"
TMPDIR=$work/tmp mmdebstrap "$@"

root=$work/root
# Where the lab's own things and the file systems under test will be mounted.
mkdir -p "$root/lab" "$root/mnt/faultstress"
echo guest >"$root/etc/hostname"
: >"$root/etc/fstab"
rm -rf "$root"/var/log/*.log "$root"/var/log/apt "$root"/var/cache/ldconfig
cp "$root/var/lib/dpkg/status" "$out/dpkg-status"

echo "I: packing the file system"
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec \
	touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
# Blocks and inodes of all files, plus a twentieth and 32 MiB for the file system's own structures.
used=$(find "$root" -printf '%s\n' | awk '{ n += int(($1 + 4095) / 4096) * 4 } END { print n }')
size=$(((used + used / 20) * 1024 / 1048576 * 1048576 + 33554432 + headroom))
truncate --size "$size" "$out/root.ext4"
# No journal: trials run on throw-away overlays, and the root file system's own transactions
# would only stand in the way of those under test.
mke2fs -q -t ext4 -d "$root" -L lab-root -U "$uuid" -O ^has_journal \
	-E "hash_seed=$uuid,root_owner=0:0,lazy_itable_init=1" "$out/root.ext4"
