#!/bin/sh
# Let a foreign architecture's programs run in this user namespace, and nowhere else, then run a
# command: since Linux 6.7 each user namespace may have a binfmt_misc of its own.
#
# usage: foreign.sh CONF COMMAND...
#   CONF  a file of /usr/lib/binfmt.d
set -eu

conf=$1
shift
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
cat "$conf" >/proc/sys/fs/binfmt_misc/register
exec "$@"
