#!/bin/sh
# A toy of our own that prints what the kernel's run_kselftest.sh prints.
# usage: run_kselftest.sh -t COLLECTION:TEST
collection=${2%:*} test=${2#*:}
grep -qx "$2" kselftest-list.txt || exit 1
cd "$collection" || exit 1
echo "TAP version 13"
echo "1..1"
echo "# selftests: $collection: $test"
"./$test" >out 2>&1
status=$?
sed 's/^/# /' out
case $status in
0) echo "ok 1 selftests: $collection: $test" ;;
4) echo "ok 1 selftests: $collection: $test # SKIP" ;;
*) echo "not ok 1 selftests: $collection: $test # exit=$status" ;;
esac
