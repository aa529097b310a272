# del.
for key in a b c d da db e f; do "$ETCDCTL" put $key "value of $key" > /dev/null; done
e del a
e del a
e del b --prev-kv
e del c e --prev-kv
e del d --prefix
e get '' --prefix
e del e --prev-kv -w json
e del e -w fields
e del f --from-key --prev-kv
e del x --range y
e del
for key in a b; do "$ETCDCTL" put $key again > /dev/null; done
e get a -w json
e del '' --prefix
e get '' --prefix --count-only -w json
