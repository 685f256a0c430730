#!/bin/sh
# One step of a case of the suite faultinject, in the guest (see lab/suites/faultinject.py).
#
# usage: faultinject.sh device                  a device-mapper device over each disk: lab-NAME
#        faultinject.sh keep DIR | kept DIR     write a file and its checksum; is it what it was?
#        faultinject.sh group | within ARGV...  a memory cgroup; run a program in it
#        faultinject.sh arm KIND [NAME=VALUE]...
#        faultinject.sh disarm KIND             prints "injected N", as far as the kernel counts
#        faultinject.sh leaks clear | find      prints "kmemleak absent|off|N", then what it found
#        faultinject.sh away                    take away what the others made
#   Status 3: it cannot be done; stderr says why.
# LAB_FAILING are the disks that fail (default: the scratch disk). LAB_DEBUG, LAB_STATE and LAB_KMSG
# move things elsewhere for tests.
set -eu

debug=${LAB_DEBUG:-/sys/kernel/debug}
state=${LAB_STATE:-/tmp/faultinject}
kmsg=${LAB_KMSG:-/dev/kmsg}
disks=${LAB_FAILING:-/dev/disk/by-lab/scratch}
group=$state/cgroup/lab
# No udev makes the nodes here, so that dmsetup does.
export DM_DISABLE_UDEV=1
mkdir -p "$state"

cannot() {
	echo "$*" >&2
	exit 3
}

# The table of a disk's device: TARGET [ARGUMENTS AFTER THE DISK]; error has nothing below it.
table_of() { # DISK TARGET [ARGUMENT...]
	below=$1
	target=$2
	shift 2
	[ "$target" = error ] || set -- "$below" 0 "$@"
	echo "0 $(blockdev --getsz "$below") $target $*"
}

mapped() {
	echo "lab-$(basename "$1")"
}

# Give the devices another table while they are in use. Not --lockfs: a file system whose device is
# gone cannot be frozen.
table() { # TARGET [ARGUMENT...]
	for disk in $disks; do
		dmsetup load "$(mapped "$disk")" --table "$(table_of "$disk" "$@")"
		dmsetup suspend --nolockfs --noflush "$(mapped "$disk")"
		dmsetup resume "$(mapped "$disk")"
	done
}

# What a device-mapper device fails by itself, nobody counts: it is no request that ended. The kernel
# reports some of it (not direct I/O, and not all of a burst), which is proof enough that it struck.
log_from_here() {
	echo "lab: armed $$" >"$kmsg"
	echo "lab: armed $$" >"$state/armed"
}

failures_logged() {
	dmesg | awk -v armed="$(cat "$state/armed")" '
		index($0, armed) { count = 0; on = 1 }
		on && /dm-[0-9]/ && /[Ee]rror/ { count++ }
		END { print count + 0 }'
}

# Reads and writes that ended on the devices.
requests() {
	for disk in $disks; do
		number=$(dmsetup info --columns --noheadings --separator : -o major,minor "$(mapped "$disk")")
		cat "/sys/dev/block/$number/stat"
	done | awk '{ count += $1 + $5 } END { print count }'
}

# `make-it-fail` of a disk: fail_make_request strikes only devices that ask for it.
disks_may_fail() {
	for disk in $disks; do
		echo "$1" >"/sys/class/block/$(basename "$(readlink -f "$disk")")/make-it-fail"
	done
}

arm_attribute() {
	attribute=$debug/$1
	[ -d "$attribute" ] || cannot "this kernel has no $attribute"
	shift
	echo 0 >"$attribute/probability"
	for pair; do
		echo "${pair#*=}" >"$attribute/${pair%%=*}"
	done
	cat "$attribute/times" >"$state/times"
}

case $1 in
device)
	for disk in $disks; do
		dmsetup create "$(mapped "$disk")" --table "$(table_of "$disk" linear)"
	done
	;;
keep)
	dd if=/dev/urandom of="$2/kept" bs=64k count=16 conv=fsync 2>/dev/null
	(cd "$2" && sha256sum kept) >"$state/kept.sha256"
	sync
	;;
kept)
	cd "$2"
	sha256sum --check --quiet "$state/kept.sha256"
	;;
group)
	mkdir -p "$state/cgroup"
	mount -t cgroup2 none "$state/cgroup" || cannot "no control groups in this kernel"
	mkdir "$group"
	echo +memory >"$state/cgroup/cgroup.subtree_control"
	;;
within)
	shift
	echo $$ >"$group/cgroup.procs"
	exec "$@"
	;;
arm)
	kind=$2
	shift 2
	case $kind in
	dm-error)
		log_from_here
		table error
		;;
	dm-delay)
		requests >"$state/requests"
		table delay "$@"
		;;
	dm-flakey)
		log_from_here
		table flakey "$@"
		;;
	memcg) echo "$1" >"$group/memory.max" ;;
	fail_make_request)
		arm_attribute "$kind" "$@"
		disks_may_fail 1
		;;
	*) arm_attribute "$kind" "$@" ;;
	esac
	;;
disarm)
	case $2 in
	dm-delay)
		echo "injected $(($(requests) - $(cat "$state/requests")))"
		table linear
		;;
	dm-*)
		table linear
		echo "injected $(failures_logged)"
		;;
	memcg)
		echo "injected $(sed -n 's/^max //p' "$group/memory.events")"
		echo max >"$group/memory.max"
		;;
	*)
		echo 0 >"$debug/$2/probability"
		[ "$2" != fail_make_request ] || disks_may_fail 0
		echo "injected $(($(cat "$state/times") - $(cat "$debug/$2/times")))"
		;;
	esac
	;;
leaks)
	if [ ! -e "$debug/kmemleak" ]; then
		echo "kmemleak absent"
	elif ! echo scan >"$debug/kmemleak" 2>/dev/null; then
		echo "kmemleak off"
	elif [ "$2" = clear ]; then
		echo clear >"$debug/kmemleak"
		echo "kmemleak 0"
	else
		# Objects younger than 5 s are left out, and one must look the same in two scans.
		sleep 6
		echo scan >"$debug/kmemleak"
		echo scan >"$debug/kmemleak"
		cat "$debug/kmemleak" >"$state/leaks"
		echo "kmemleak $(grep -c '^unreferenced object' "$state/leaks" || true)"
		head -c 60000 "$state/leaks"
	fi
	;;
away)
	if mountpoint -q "$state/cgroup"; then
		[ ! -d "$group" ] || rmdir "$group"
		umount "$state/cgroup"
	fi
	for disk in $disks; do
		[ ! -e "/dev/mapper/$(mapped "$disk")" ] || dmsetup remove "$(mapped "$disk")"
	done
	rm -rf "$state"
	;;
*)
	cannot "faultinject.sh does not know $1"
	;;
esac
