# lock and elect: leases, guarded transactions and watches put together.
e lock name echo held
e lock name -- sh -c 'exit 7'
e get name --prefix --keys-only
"$ETCDCTL" lock name -- sh -c "echo first; touch '$SCRATCH/held'; while [ ! -e '$SCRATCH/release' ]; do sleep 0.05; done" > "$SCRATCH/first" 2>&1 &
first=$!
while [ ! -e "$SCRATCH/held" ] && kill -0 $first; do sleep 0.05; done
"$ETCDCTL" lock name echo second > "$SCRATCH/second" 2>&1 &
second=$!
while [ "$("$ETCDCTL" get name --prefix --keys-only | grep -c name)" -lt 2 ] && kill -0 $second; do sleep 0.05; done
cat "$SCRATCH/second"
touch "$SCRATCH/release"
wait $first
wait $second
cat "$SCRATCH/first" "$SCRATCH/second"
e get name --prefix --keys-only

: > "$SCRATCH/elected"
: > "$SCRATCH/leader"
"$ETCDCTL" elect chair mine > "$SCRATCH/elected" 2>&1 &
pid=$!
await "$SCRATCH/elected" 2 $pid
"$ETCDCTL" elect -l chair > "$SCRATCH/leader" 2>&1 &
observer=$!
await "$SCRATCH/leader" 2 $observer
kill $pid $observer
wait $pid $observer 2> /dev/null
sed 's|chair/[0-9a-f]*|chair/LEASE|' "$SCRATCH/elected" "$SCRATCH/leader"
