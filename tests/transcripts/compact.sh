# compaction, defrag, and hashes before and after.
for n in 1 2 3 4 5; do "$ETCDCTL" put a $n > /dev/null; done
e put b 1
e del b
e put c 1
e endpoint hashkv
e endpoint hashkv -w json
e endpoint hashkv --rev 4
e compaction 5
e compaction 5
e compaction 4
e compaction 1000
e compaction
e compaction x
e get a --rev 4
e get a --rev 5 -w json
e get a --rev 6
watching 1 a --rev 3
watching 3 a --rev 6
e endpoint hashkv
e endpoint hashkv --rev 6 -w json
e endpoint hashkv --rev 3
e compaction 8 --physical
e defrag
e get '' --prefix
e endpoint hashkv -w table
