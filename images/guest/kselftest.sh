#!/bin/sh
# Run one kernel self-test from a read-only disk (see lab/suites/kselftest.py).
#
# usage: kselftest.sh COLLECTION TEST
#   Prints what run_kselftest.sh prints of it. Status 3: it is not there; stderr says so.
# LAB_TREE, LAB_STATE and LAB_DISKS move things elsewhere for tests.
set -eu

tree=${LAB_TREE:-/lab/kselftest}
state=${LAB_STATE:-/root/kselftest}
disks=${LAB_DISKS:-/dev/disk/by-lab}
collection=$1 test=$2

cannot() {
	echo "$*" >&2
	exit 3
}

if [ ! -e "$tree/run_kselftest.sh" ]; then
	[ -e "$disks/kselftest" ] || cannot "there are no self-tests in this guest"
	mkdir -p "$tree"
	mount -t ext4 -o ro,noload "$disks/kselftest" "$tree" || cannot "the self-tests do not mount"
fi
[ -e "$tree/$collection/$test" ] || cannot "$collection:$test is not built for this kernel"
# Tests write beside themselves.
rm -rf "$state"
mkdir -p "$state"
cp -r "$tree/kselftest" "$tree/run_kselftest.sh" "$state"
mkdir -p "$state/$collection"
cp -r "$tree/$collection/." "$state/$collection"
printf '%s:%s\n' "$collection" "$test" >"$state/kselftest-list.txt"
# The lab has a limit of its own, which knows how slow this machine is.
echo "timeout=0" >>"$state/$collection/settings"
cd "$state"
exec ./run_kselftest.sh -t "$collection:$test" 2>&1
