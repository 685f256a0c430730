#!/bin/sh
# State of the guest's kernel between two cases, then a mark in its log.
# usage: probe.sh MARK      output: "taint N" and, with lockdep, "debug_locks N"
set -eu
printf 'taint %s\n' "$(cat /proc/sys/kernel/tainted)"
if [ -r /proc/lockdep_stats ]; then
	sed -n 's/^ *debug_locks: */debug_locks /p' /proc/lockdep_stats
fi
# One write is one record; the console shows it after all that came before it.
printf '<6>lab: %s\n' "$1" >/dev/kmsg
