#!/bin/sh
# Run a command as root of a user namespace of its own that holds all of the caller's users. For
# root: newuidmap, which unshare(1) would use, maps only what /etc/subuid grants.
#
# usage: own-users.sh FIFO COMMAND...
#   FIFO  a path where nothing is yet
set -eu

fifo=$1
shift
exec 3<&0
mkfifo "$fifo"
# The child's stdin would be /dev/null, for it is in the background: it gets ours back.
# shellcheck disable=SC2016 # these are the inner shell's
unshare --user -- /bin/sh -c 'read -r _ <"$0"; exec "$@" <&3 3<&-' "$fifo" "$@" &
child=$!
ours=$(readlink /proc/$$/ns/user)
tries=0
while [ "$(readlink "/proc/$child/ns/user")" = "$ours" ]; do
	tries=$((tries + 1))
	if [ "$tries" -gt 200 ]; then
		kill "$child"
		echo "own-users.sh: no user namespace within 10 s" >&2
		exit 125
	fi
	sleep 0.05
done
sed 's/^ *\([0-9]*\) .* \([0-9]*\)$/\1 \1 \2/' /proc/self/uid_map >"/proc/$child/uid_map"
sed 's/^ *\([0-9]*\) .* \([0-9]*\)$/\1 \1 \2/' /proc/self/gid_map >"/proc/$child/gid_map"
echo >"$fifo"
status=0
wait "$child" || status=$?
rm -f "$fifo"
exit "$status"
