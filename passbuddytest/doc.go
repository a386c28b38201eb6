// Package passbuddytest is a fleet in a test: any number of pretended processes that share one
// capacity, without a server. The scripts are the real ones; they run on miniredis, in the test's
// own process. So queueing, leases, recalls and the loss of Redis do to your code what they do in
// production. It cannot show what needs real servers. There is no Postgres, so no test sees the cap
// in pg_stat_activity, or passbuddy.Config.Fence at work. There is no sharded pub/sub
// (Redis 7 and later), no replica (semaphore.Config.WaitReplicas), no failover, no Redis
// Cluster, no ACL and no TLS.
//
// A test makes a Fleet, opens a Semaphore for each process that it pretends, and gives that to the
// code under test:
//
//	f := passbuddytest.New(t, passbuddytest.Config{Capacity: 2})
//	store := orders.New(f.Semaphore(t))
//
// Then it makes things happen: Exhaust, Down, Up, Flush, Delay, ExpireLeases, Expire. At the end
// RequireNoLeak finds what the code has kept.
//
// # Fake time
//
// A Fleet works inside a bubble of testing/synctest, where a wait of minutes takes none. Make it
// inside the bubble. Its connections are pipes in memory, in a bubble and outside. Only URL opens a
// port, on the loopback interface; it cannot be used in a bubble.
//
// A Postgres cannot be reached from inside a bubble either. There, put a driver without a network
// under passbuddy.OpenDB, for example go-sqlmock.
//
// # Logs
//
// The sessions that Semaphore opens log to the test. go-redis logs failed dials to stderr; that is
// one setting for the whole program: redis.SetLogger.
package passbuddytest
