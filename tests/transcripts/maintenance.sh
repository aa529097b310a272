# endpoint, alarm and member.
e put a 1
e endpoint health
e endpoint health -w json
e endpoint health -w table
e endpoint health --cluster
e endpoint status
e endpoint status -w table
e endpoint status -w json
e endpoint status -w fields
e endpoint status --cluster
e endpoint hashkv --cluster -w table
e endpoint hashkv -w fields
e alarm list
e alarm disarm
e alarm list -w json
e member list
e member list -w table
e member list -w json
e member list -w fields
e member list --hex
e member remove 1234abcd
e member update 1234abcd --peer-urls http://127.0.0.1:1
e member promote 1234abcd
e move-leader 1234abcd
e auth status
