// Command client calls a server through etcd's own Go client, as most programs that use etcd do, and ends with an
// error when an answer is not what etcd's documentation promises.
//
//	client http://127.0.0.1:2379 [PART...]
//
// The server must be fresh: revisions are compared. Of the parts named, each must be refused as not implemented: when
// it is no longer, the name has to go.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func have[T any](value T, err error) T {
	must(err)
	return value
}

func check(ok bool, format string, args ...any) {
	if !ok {
		panic(fmt.Sprintf(format, args...))
	}
}

func keyValues(ctx context.Context, c *clientv3.Client) {
	for i, key := range []string{"kv/b", "kv/a", "kv/c"} {
		have(c.Put(ctx, key, strconv.Itoa(i)))
	}
	put := have(c.Put(ctx, "kv/a", "again", clientv3.WithPrevKV()))
	check(string(put.PrevKv.Value) == "1", "previous value: %v", put.PrevKv)
	all := have(c.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend)))
	check(all.Count == 3 && string(all.Kvs[0].Key) == "kv/a" && all.Kvs[0].Version == 2, "%v", all)
	page := have(c.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithLimit(2)))
	check(page.More && page.Count == 3 && len(page.Kvs) == 2, "%v", page)
	old := have(c.Get(ctx, "kv/a", clientv3.WithRev(put.Header.Revision-1), clientv3.WithSerializable()))
	check(string(old.Kvs[0].Value) == "1", "%v", old)
	first := have(c.Get(ctx, "kv/", clientv3.WithFirstCreate()...))
	check(string(first.Kvs[0].Key) == "kv/b", "%v", first)
	_, err := c.Get(ctx, "kv/a", clientv3.WithRev(put.Header.Revision+1000))
	check(errors.Is(err, rpctypes.ErrFutureRev), "%v", err)
	_, err = c.Put(ctx, "", "no key")
	check(errors.Is(err, rpctypes.ErrEmptyKey), "%v", err)
	large := bytes.Repeat([]byte("v"), 1<<20)
	have(c.Put(ctx, "kv/large", string(large)))
	check(bytes.Equal(have(c.Get(ctx, "kv/large")).Kvs[0].Value, large), "a large value")
	gone := have(c.Delete(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithPrevKV()))
	check(gone.Deleted == 4 && len(gone.PrevKvs) == 4, "%d", gone.Deleted)
}

func transactions(ctx context.Context, c *clientv3.Client) {
	txn := have(c.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision("txn/a"), "=", 0)).
		Then(clientv3.OpPut("txn/a", "1"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("txn/b", "2")}, nil), clientv3.OpGet("txn/", clientv3.WithPrefix())).
		Else(clientv3.OpGet("txn/a")).Commit())
	check(txn.Succeeded && len(txn.Responses[2].GetResponseRange().Kvs) == 2, "%v", txn)
	txn = have(c.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("txn/a"), ">", "1")).
		Then(clientv3.OpDelete("txn/a")).
		Else(clientv3.OpGet("txn/a")).Commit())
	check(!txn.Succeeded && string(txn.Responses[0].GetResponseRange().Kvs[0].Value) == "1", "%v", txn)
	_, err := c.Txn(ctx).Then(clientv3.OpPut("txn/c", ""), clientv3.OpPut("txn/c", "")).Commit()
	check(errors.Is(err, rpctypes.ErrDuplicateKey), "%v", err)
}

func watches(ctx context.Context, c *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := have(c.Put(ctx, "watch/a", "1")).Header.Revision
	const events = 200
	live := c.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(from))
	deletes := c.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
	check((<-deletes).Created, "no notice of the creation")
	for i := 2; i <= events; i++ {
		have(c.Put(ctx, "watch/a", strconv.Itoa(i)))
	}
	have(c.Delete(ctx, "watch/a"))
	seen, last := 0, from-1
	for seen <= events {
		answer, open := <-live
		check(open && answer.Err() == nil, "%v", answer.Err())
		for _, event := range answer.Events {
			seen++
			check(event.Kv.ModRevision > last, "events out of order")
			last = event.Kv.ModRevision
			if seen > 1 {
				check(string(event.PrevKv.Value) == strconv.Itoa(seen-1), "event %d: %v", seen, event)
			}
			check((event.Type == mvccpb.DELETE) == (seen > events), "event %d: %v", seen, event.Type)
		}
	}
	answer := <-deletes
	check(len(answer.Events) == 1 && answer.Events[0].Type == mvccpb.DELETE, "%v", answer)
	must(c.RequestProgress(ctx))
	for !answer.IsProgressNotify() {
		answer = <-live
	}
	check(answer.Header.Revision >= last, "%v", answer.Header)
	have(c.Compact(ctx, last))
	refused := <-c.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithRev(from))
	check(errors.Is(refused.Err(), rpctypes.ErrCompacted) && refused.CompactRevision == last, "%v", refused)
	_, err := c.Get(ctx, "watch/a", clientv3.WithRev(from))
	check(errors.Is(err, rpctypes.ErrCompacted), "%v", err)
}

func leases(ctx context.Context, c *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lease := have(c.Grant(ctx, 60)).ID
	have(c.Put(ctx, "lease/a", "", clientv3.WithLease(lease)))
	alive := have(c.KeepAlive(ctx, lease))
	check((<-alive).TTL == 60, "kept alive")
	left := have(c.TimeToLive(ctx, lease, clientv3.WithAttachedKeys()))
	check(left.GrantedTTL == 60 && left.TTL > 0 && len(left.Keys) == 1 && string(left.Keys[0]) == "lease/a", "%v", left)
	check(len(have(c.Leases(ctx)).Leases) == 1, "leases")
	gone := c.Watch(ctx, "lease/a")
	have(c.Revoke(ctx, lease))
	check((<-gone).Events[0].Type == mvccpb.DELETE, "the key goes with its lease")
	_, err := c.KeepAliveOnce(ctx, lease)
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "%v", err)
	short := have(c.Grant(ctx, 1)).ID
	have(c.Put(ctx, "lease/short", "", clientv3.WithLease(short)))
	gone = c.Watch(ctx, "lease/short", clientv3.WithFilterPut())
	check((<-gone).Events[0].Type == mvccpb.DELETE, "the key goes when its lease ends")
}

func maintenance(ctx context.Context, c *clientv3.Client) {
	endpoint := c.Endpoints()[0]
	state := have(c.Status(ctx, endpoint))
	check(state.Leader == state.Header.MemberId && state.Version != "" && state.DbSize > 0, "%v", state)
	check(len(have(c.AlarmList(ctx)).Alarms) == 0, "alarms")
	have(c.Defragment(ctx, endpoint))
	hash := have(c.HashKV(ctx, endpoint, 0))
	again := have(c.HashKV(ctx, endpoint, hash.Header.Revision))
	check(hash.Hash == again.Hash && hash.HashRevision == again.HashRevision, "%v %v", hash, again)
	check(len(have(c.MemberList(ctx)).Members) == 1, "members")
}

func snapshots(ctx context.Context, c *clientv3.Client) {
	reader := have(c.Snapshot(ctx))
	defer reader.Close()
	snapshot := have(io.ReadAll(reader))
	body := len(snapshot) - sha256.Size
	check(body > 0 && body%512 == 0, "a snapshot of %d bytes", len(snapshot))
	sum := sha256.Sum256(snapshot[:body])
	check(bytes.Equal(sum[:], snapshot[body:]), "the sum of the snapshot")
}

func locks(ctx context.Context, c *clientv3.Client) {
	const workers, rounds = 4, 8
	have(c.Put(ctx, "locks/counter", "0"))
	var group sync.WaitGroup
	failed := make(chan any, workers)
	for range workers {
		group.Go(func() {
			defer func() { failed <- recover() }()
			session := have(concurrency.NewSession(c, concurrency.WithContext(ctx)))
			defer session.Close()
			mutex := concurrency.NewMutex(session, "locks/mutex")
			for range rounds {
				must(mutex.Lock(ctx))
				n := have(strconv.Atoi(string(have(c.Get(ctx, "locks/counter")).Kvs[0].Value)))
				have(c.Txn(ctx).If(mutex.IsOwner()).Then(clientv3.OpPut("locks/counter", strconv.Itoa(n+1))).Commit())
				must(mutex.Unlock(ctx))
			}
		})
	}
	group.Wait()
	for range workers {
		what := <-failed
		check(what == nil, "%v", what)
	}
	count := string(have(c.Get(ctx, "locks/counter")).Kvs[0].Value)
	check(count == strconv.Itoa(workers*rounds), "counted to %s", count)
	one := have(concurrency.NewSession(c))
	defer one.Close()
	other := have(concurrency.NewSession(c))
	defer other.Close()
	held := concurrency.NewMutex(one, "locks/held")
	must(held.Lock(ctx))
	check(errors.Is(concurrency.NewMutex(other, "locks/held").TryLock(ctx), concurrency.ErrLocked), "locked twice")
}

func elections(ctx context.Context, c *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, second := have(concurrency.NewSession(c)), have(concurrency.NewSession(c))
	defer first.Close()
	defer second.Close()
	a, b := concurrency.NewElection(first, "elections"), concurrency.NewElection(second, "elections")
	must(a.Campaign(ctx, "a"))
	observed := b.Observe(ctx)
	check(string((<-observed).Kvs[0].Value) == "a", "the first leader")
	won := make(chan error, 1)
	go func() { won <- b.Campaign(ctx, "b") }()
	must(a.Proclaim(ctx, "still a"))
	check(string((<-observed).Kvs[0].Value) == "still a", "what the leader proclaims")
	must(a.Resign(ctx))
	must(<-won)
	check(string(have(b.Leader(ctx)).Kvs[0].Value) == "b", "the second leader")
	check(string((<-observed).Kvs[0].Value) == "b", "the second leader is observed")
}

func memory(ctx context.Context, c *clientv3.Client) {
	const accounts, workers, rounds = 5, 4, 15
	name := func(i int) string { return fmt.Sprintf("stm/%d", i) }
	for i := range accounts {
		have(c.Put(ctx, name(i), "100"))
	}
	var group sync.WaitGroup
	failed := make(chan error, workers*rounds)
	for worker := range workers {
		group.Go(func() {
			for round := range rounds {
				from, to := (worker+round)%accounts, (worker+2*round+1)%accounts
				if from == to {
					continue
				}
				_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
					a, _ := strconv.Atoi(stm.Get(name(from)))
					b, _ := strconv.Atoi(stm.Get(name(to)))
					stm.Put(name(from), strconv.Itoa(a-round))
					stm.Put(name(to), strconv.Itoa(b+round))
					return nil
				}, concurrency.WithAbortContext(ctx))
				failed <- err
			}
		})
	}
	group.Wait()
	close(failed)
	for err := range failed {
		must(err)
	}
	sum := 0
	for _, kv := range have(c.Get(ctx, "stm/", clientv3.WithPrefix())).Kvs {
		sum += have(strconv.Atoi(string(kv.Value)))
	}
	check(sum == accounts*100, "money was made: %d", sum)
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: client ENDPOINT [PART...]")
		os.Exit(2)
	}
	// It ends by itself, whatever the server does.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c, err := clientv3.New(clientv3.Config{Endpoints: os.Args[1:2], DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	must(err)
	defer c.Close()
	passed := 0
	for _, part := range []struct {
		name string
		run  func(context.Context, *clientv3.Client)
	}{
		{"key values", keyValues},
		{"transactions", transactions},
		{"watches", watches},
		{"leases", leases},
		{"locks", locks},
		{"elections", elections},
		{"transactional memory", memory},
		{"maintenance", maintenance},
		{"snapshots", snapshots},
	} {
		func() {
			defer func() {
				what := recover()
				err, _ := what.(error)
				missing := status.Code(err) == codes.Unimplemented
				if slices.Contains(os.Args[2:], part.name) {
					what = nil
					if !missing {
						what = fmt.Sprintf("was to be refused, but: %v", err)
					}
				}
				if what != nil {
					fmt.Printf("%s: %v\n", part.name, what)
					os.Exit(1)
				}
			}()
			part.run(ctx, c)
		}()
		passed++
	}
	fmt.Printf("%d parts passed\n", passed)
}
