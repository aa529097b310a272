# What the transcripts are written in. $ETCDCTL is the client, $ETCDCTL_ENDPOINTS the server, $SCRATCH a
# directory of this run, $MASKS a file of `NAME value` lines: values to be masked in the output.

echo_command() {
    printf '\n$ etcdctl'
    for word in "$@"; do
        case $word in
            '' | *[!-_=/.:,A-Za-z0-9]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
}

# e ARGS...: runs the client; prints the command, what it prints, and its exit status.
e() {
    echo_command "$@"
    "$ETCDCTL" "$@" 2>&1
    echo "[exit $?]"
}

# await FILE LINES PID: until FILE has LINES lines, or the process has ended.
await() {
    while [ "$(wc -l < "$1")" -lt "$2" ] && kill -0 "$3" 2>/dev/null; do sleep 0.05; done
}

# watching LINES ARGS...: runs `watch ARGS` until it has printed LINES lines.
watching() {
    lines=$1
    shift
    echo_command watch "$@"
    : > "$SCRATCH/watch"
    "$ETCDCTL" watch "$@" > "$SCRATCH/watch" 2>&1 &
    pid=$!
    await "$SCRATCH/watch" "$lines" $pid
    kill $pid 2>/dev/null
    wait $pid 2>/dev/null
    cat "$SCRATCH/watch"
}

# grant NAME TTL: grants a lease; $id is its id, masked as NAME.
grant() {
    echo_command lease grant "$2"
    out=$("$ETCDCTL" lease grant "$2" 2>&1)
    echo "$out"
    id=$(echo "$out" | awk '{ print $2 }')
    echo "$1 $id" >> "$MASKS"
}
