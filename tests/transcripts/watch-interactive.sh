# watch -i: several watches on one stream, and progress on request.
e put a 1
e put b 2
e put a 3
mkfifo "$SCRATCH/input"
: > "$SCRATCH/output"
"$ETCDCTL" watch -i < "$SCRATCH/input" >> "$SCRATCH/output" 2>&1 &
pid=$!
exec 9> "$SCRATCH/input"
say() {
    echo "> $1"
    echo "$1" >&9
}
until_lines() {
    await "$SCRATCH/output" "$1" $pid
    cat "$SCRATCH/output"
    : > "$SCRATCH/output"
}
say 'watch a --rev 2'
until_lines 6
say 'watch b --rev=2 --prev-kv'
until_lines 3
# Its answer is for both watches.
say 'progress'
until_lines 2
say 'nonsense'
until_lines 1
exec 9>&-
kill $pid 2> /dev/null
wait $pid 2> /dev/null
echo ended
