#!/bin/sh
# Drive a tree of xfstests that lies on a read-only disk (see lab/suites/xfstests.py).
#
# usage: xfstests.sh setup NAME FSTYP MKFS-OPTIONS SECTION-TEXT
#            ready for tests of that configuration: the tree is mounted, the disks are made
#        xfstests.sh check NAME TEST [CHECK-OPTION...]
#            run one test; ends as `check` does
#        xfstests.sh begun TEST
#            wait until it runs the test itself; 1: it ended before it got there
#        xfstests.sh sound FSTYP test|scratch...
#            unmount, and look whether what is on these disks mounts and is whole
#        xfstests.sh show NAME TEST LIMIT
#            what it left: for each file a line "file NAME SIZE" and SIZE bytes, then "end"
# Status 3: it cannot be done; the last line on stderr says why.
# LAB_DISKS is what comes before the name of a disk, LAB_STRIKE a list of paths for strike.so, which
# the test's programs are given then. LAB_TREE, LAB_STATE, LAB_RESULTS and LAB_MOUNTS move things elsewhere for tests.
set -eu

tree=${LAB_TREE:-/lab/xfstests}
state=${LAB_STATE:-/run/xfstests}
results=${LAB_RESULTS:-/root/xfstests}
disks=${LAB_DISKS:-/dev/disk/by-lab/}
serials=/dev/disk/by-lab
mounts=${LAB_MOUNTS:-/mnt/xfstests}

cannot() {
	echo "$*" >&2
	exit 3
}

# The users that the tests expect. The root file system is thrown away afterwards.
add_users() {
	number=2000
	for user in fsgqa fsgqa2 123456-fsgqa; do
		number=$((number + 1))
		grep -q "^$user:" /etc/passwd && continue
		echo "$user:x:$number:$number::/tmp:/bin/bash" >>/etc/passwd
		echo "$user:x:$number:" >>/etc/group
	done
}

make_fs() { # FSTYP OPTIONS DEVICE
	# btrfs remembers by which name it saw a device first, and shows it in /proc/mounts.
	device=$(readlink -f "$3")
	case $1 in
	ext4) set -- mkfs.ext4 -q -F "$2" ;;
	xfs) set -- mkfs.xfs -q -f "$2" ;;
	btrfs) set -- mkfs.btrfs -q -f "$2" ;;
	*) cannot "no way to make $1" ;;
	esac
	# shellcheck disable=SC2086 # the options are several words
	"$1" "$2" "$3" $4 "$device" || cannot "$1 $4 fails on $device"
}

# A section, with the disks' own names in place of links to them: /proc/mounts has these, and for an
# overlay `check` does not look behind a link by itself.
own_names() {
	while IFS= read -r line; do
		case $line in
		*_DEV=/*) printf '%s=%s\n' "${line%%=*}" "$(readlink -f "${line#*=}")" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done
}

unmount_all() {
	for place in "$mounts/test/ovl-mnt" "$mounts/scratch/ovl-mnt" "$mounts/test" "$mounts/scratch"; do
		while mountpoint -q "$place"; do
			umount "$place" || cannot "an earlier test left $place busy"
		done
	done
}

setup() { # NAME FSTYP MKFS-OPTIONS SECTION-TEXT
	mkdir -p "$state" "$mounts/test" "$mounts/scratch"
	rm -f "$state/ended"
	if [ ! -e "$tree/check" ]; then
		[ -e "$serials/xfstests" ] || cannot "there is no tree of xfstests in this guest"
		mkdir -p "$tree"
		mount -t ext4 -o ro,noload "$serials/xfstests" "$tree" || cannot "the tree does not mount"
		add_users
		[ "$(hostname)" != "(none)" ] || hostname guest
	fi
	# A test that did not pass may have left anything.
	if [ ! -e "$state/dirty" ] && [ "$(cat "$state/name" 2>/dev/null)" = "$1" ]; then
		return 0
	fi
	unmount_all
	if [ "$2" ]; then
		make_fs "$2" "$3" "${disks}xfstest"
		make_fs "$2" "$3" "${disks}xfsscratch"
	fi
	printf '%s\n' "$4" | own_names >"$state/config"
	printf '%s\n' "$1" >"$state/name"
	rm -f "$state/dirty"
}

# What `check` sources first, and, where programs are to be struck, the test after it: bash does so
# with BASH_ENV. Half of all processes of a small test would only write the properties of its report,
# which nobody reads, and processes are what a slow machine spends its time with. What the test starts
# is preloaded; what `check` starts is not, or there would be no report.
first_words() {
	cat >"$state/first" <<-'END'
		case $0 in
		*/tests/*)
			unset BASH_ENV
			export LD_PRELOAD=/lab/bin/strike.so
			;;
		*)
			[ "${LAB_STRIKE:-}" ] || unset BASH_ENV
			_xunit_add_property() { :; }
			readonly -f _xunit_add_property
			;;
		esac
	END
}

check() { # NAME TEST CHECK-OPTION...
	name=$1 test=$2
	shift 2
	rm -rf "$results"
	mkdir -p "$results"
	: >"$state/dirty"
	# The quiet one leaves the logs out, which come as files. Older trees do not have it.
	format=xunit
	! grep -q xunit-quiet "$tree/common/report" 2>/dev/null || format=xunit-quiet
	first_words
	cd "$tree"
	status=0
	BASH_ENV=$state/first HOST_OPTIONS=$state/config DIFF_LENGTH=20 \
		./check "$@" -R "$format" -s "$name" "$test" 2>&1 || status=$?
	: >"$state/ended"
	[ "$status" -ne 0 ] || rm -f "$state/dirty"
	exit "$status"
}

begun() { # TEST
	# `exec` of bash made the path absolute. Brackets, so that this does not find itself.
	while ! grep -qsxz ".*[/]tests/$1" /proc/[0-9]*/cmdline; do
		[ ! -e "$state/ended" ] || exit 1
		sleep 0.5
	done
}

sound() { # FSTYP test|scratch...
	kind=$1
	shift
	: >"$state/dirty" # it takes the mounts away, so the next test has to set up anew
	unmount_all
	for disk; do
		device=$(readlink -f "${disks}xfs$disk")
		# A test may leave anything on its scratch disk, nothing included.
		if [ "$(blkid -p -s TYPE -o value "$device")" != "$kind" ]; then
			[ "$disk" = scratch ] || cannot "there is no $kind on the $disk disk any more"
			continue
		fi
		# What was logged and not done yet is not damage.
		mount -t "$kind" "$device" "$mounts/$disk" || cannot "the $disk disk does not mount"
		umount "$mounts/$disk" || cannot "the $disk disk stays busy"
		case $kind in
		ext4) e2fsck -fn "$device" ;;
		xfs) xfs_repair -n "$device" ;;
		btrfs) btrfs check --readonly "$device" ;;
		esac || cannot "the file system on the $disk disk is damaged"
	done
}

show_file() { # NAME PATH LIMIT
	[ -f "$2" ] || return 0
	# The end of a long log tells more than its beginning; a cut report tells nothing.
	size=$(stat -c %s "$2")
	[ "$size" -le "$3" ] || size=$3
	printf 'file %s %s\n' "$1" "$size"
	tail -c "$size" "$2" | head -c "$size"
	printf '\n'
}

show() { # NAME TEST LIMIT
	place=$results/$1
	show_file result.xml "$place/result.xml" "$3"
	show_file check.time "$results/check.time" "$3"
	for kind in out.bad full dmesg notrun hints; do
		show_file "$kind" "$place/$2.$kind" "$3"
	done
	if [ -f "$place/$2.out.bad" ]; then
		diff -u "$tree/tests/$2.out" "$place/$2.out.bad" >"$state/diff" || true
		show_file out.diff "$state/diff" "$3"
	fi
	echo end
}

what=$1
shift
case $what in
setup | check | begun | sound | show) "$what" "$@" ;;
*) cannot "no way to $what" ;;
esac
