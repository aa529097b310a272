# lease.
e lease list
grant LEASE_A 100
a=$id
grant LEASE_B 1
grant LEASE_C 500
c=$id
e put a 1 --lease=$a
e put b 1 --lease=$c
e get a -w json
e get a -w fields
e lease timetolive $a
e lease timetolive $a --keys
e lease timetolive $a --keys -w json
e lease timetolive $a -w fields
e lease timetolive 1234abcd
e lease keep-alive --once $a
e lease keep-alive --once 1234abcd
e lease keep-alive --once $a -w json
e put x 1 --lease=1234abcd
e put b 2 --ignore-lease
e get b -w json
e lease revoke $a
e lease revoke $a
e lease timetolive $a
e get a
e get '' --prefix --keys-only
e lease grant notanumber
e lease grant
e lease revoke zzz
echo '== expiry'
grant LEASE_D 2
"$ETCDCTL" put short 1 --lease=$id
while [ -n "$("$ETCDCTL" get short)" ]; do sleep 0.1; done
e lease timetolive $id
e lease list
e lease revoke $c
e lease list
e lease list -w json
