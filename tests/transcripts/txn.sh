# txn: comparisons, an empty line, operations for success, an empty line, for failure, an empty line.
e put a 1
e txn <<'END'
mod("a") > "0"

put a overwritten
get a

put a created

END
e txn <<'END'
create("missing") = "0"
version("a") = "2"
value("a") = "overwritten"

put missing now-there
del a
get '' --prefix

put a other

END
e txn -w json <<'END'
version("a") = "7"

put a 1

put a 2
get a
del missing

END
e txn -w fields <<'END'
value("a") = "2"

get a --rev=2
put b 1
del nothing


END
e txn <<'END'
value("a") < "3"
version("b") != "9"



END
e txn <<'END'

put a 1
put a 2


END
e txn <<'END'

get a --rev=1000


END
e txn <<'END'

put a 1 --lease=123456


END
e txn <<'END'

put "" 1


END
e txn -i <<'END'
mod("a") != "0"

get a

get b

END
e get '' --prefix -w json
