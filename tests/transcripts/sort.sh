# get: sorting, limits and revision filters.
for pair in a=x b=z c=w a=x c=w a=x d=y; do
    "$ETCDCTL" put "${pair%=*}" "${pair#*=}" > /dev/null
done
for target in KEY VERSION CREATE MODIFY VALUE; do
    e get '' --prefix --sort-by $target
    e get '' --prefix --sort-by $target --order ASCEND
    e get '' --prefix --sort-by $target --order DESCEND
    e get '' --prefix --sort-by $target --order DESCEND --limit 2 --keys-only
    e get '' --prefix --sort-by $target --limit 2
done
e get '' --prefix --order DESCEND
e get '' --prefix --sort-by NOTHING
e get '' --prefix --order SIDEWAYS
e get '' --prefix --rev 4 --sort-by MODIFY --order DESCEND -w json
