# watch: history first, so that what is printed does not depend on when the watch begins.
e put a 1
e put ab 2
e put b 3
e put a 4
e del a
e put a 5
"$ETCDCTL" txn > /dev/null <<'END'

put ax 1
put ay 2
del b


END
watching 3 a --rev 5
watching 18 a --prefix --rev 2
watching 9 a --rev 2 --prev-kv
watching 6 a b --rev 7
watching 1 a --rev 7 -w json
watching 1 a --prefix --rev 8 -w json
watching 1 a --rev 6 --prev-kv -w json
watching 12 a --rev 6 -w fields
watching 12 a z --rev 2
watching 3 a --rev 7 --hex
watching 8 a --rev 6 -- sh -c 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY=$ETCD_WATCH_VALUE at $ETCD_WATCH_REVISION"'

echo '== live'
: > "$SCRATCH/live"
"$ETCDCTL" watch live --prefix > "$SCRATCH/live" 2>&1 &
pid=$!
# Put until the watch is there, then a sequence it must see whole.
while [ ! -s "$SCRATCH/live" ] && kill -0 $pid; do "$ETCDCTL" put live/ready 1 > /dev/null; done
"$ETCDCTL" put live/a 1 > /dev/null
"$ETCDCTL" put live/a 2 > /dev/null
"$ETCDCTL" del live/a > /dev/null
"$ETCDCTL" put live/end 1 > /dev/null
while ! grep -q live/end "$SCRATCH/live" && kill -0 $pid; do sleep 0.05; done
kill $pid
wait $pid 2> /dev/null
grep -v -e ready -e end "$SCRATCH/live" | sed -n '/live\/a/,$p'
