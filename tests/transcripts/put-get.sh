# put and get, in every output form.
e put a 1
e put b 2
e put ab 'three words here'
e put empty ''
e put a 1-again --prev-kv
e put new 1 --prev-kv
printf 'from standard input' | e put stdin
e put a --ignore-value
e put missing --ignore-value
e put a 9 --ignore-lease
e put missing 9 --ignore-lease
e put "$(printf 'binary\001\377')" "$(printf 'v\002\377')"
e get a
e get nothing
e get a --print-value-only
e get a --hex
e get a -w json
e get a -w fields
e get a -w protobuf --print-value-only
e get '' --prefix
e get '' --prefix --keys-only
e get '' --prefix --count-only
e get '' --prefix --count-only -w json
e get '' --prefix --count-only -w fields
e get '' --prefix -w json
e get '' --prefix -w fields
e get a --prefix
e get a b
e get a c --limit 2
e get a c --limit 2 -w json
e get b --from-key
e get '' --from-key --limit 3 --keys-only
e get a --rev 2
e get a --rev 6 -w json
e get a --rev 1
e get a --rev 1000
e get z a
e get a --consistency s
e get a --consistency l
e get a --consistency x
e get '' --prefix -w table
e get
e get a b c
e put
e put only-a-key-on-the-command-line < /dev/null
