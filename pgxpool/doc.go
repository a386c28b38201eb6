// Package pgxpool puts the connections of a [pgxpool.Pool] under the permits of a
// [semaphore.Semaphore]. All pools that share the semaphore, in any number of processes, together
// never hold more Postgres backends than its capacity.
//
//	import passpool "github.com/passbuddy/passbuddy/pgxpool"
//
//	pool, err := passpool.New(ctx, url, sem, passbuddy.Config{})
//
// [Open] finds the semaphore by settings in the DSN and the environment.
//
// The result is pgx's own pool. A checkout waits while the fleet is at capacity, first come, first
// served, and a return lets the next one in. A connection that lies idle is given up when another
// process waits. A checkout of a warm connection sends nothing to Redis.
//
// # Permits follow sockets
//
// With [passbuddy.PerConnection] a permit is taken before a socket is dialled. It comes back when
// the server has closed its end: that is when the backend is gone. So it makes no difference who
// closes the connection: the pool, pgx after a cancelled query (up to 15 seconds later), the owner
// of a hijacked connection, or the garbage collector.
//
// With [passbuddy.PerCheckout] a permit is taken at each checkout and given back at each return. A
// connection that does not go back in good order keeps the permit until its backend is gone. Idle
// connections, and those that [pgxpool.Pool.AcquireAllIdle] hands out, are not counted.
//
// # Connections opened by hand
//
// pgx.ConnectConfig and stdlib.OpenDB with the ConnConfig of [pgxpool.Pool.Config] open connections
// outside the pool. Each counts, in either scope, as one checkout for as long as it is open. It
// waits for a permit as a checkout does, and the pool cannot take it back while it is idle. For an
// *sql.DB that shares the pool's connections use stdlib.OpenDBFromPool. pgconn.ConnectConfig, which
// calls no tracer, is not counted.
//
// # Close
//
// Close of the pool wakes the callers that wait for a permit, with pgx's own error for a closed
// pool. An operation whose connection was ended because its lease was lost fails with an error that
// matches [semaphore.ErrLost].
//
// # MaxConns
//
// MaxConns stays what it is in pgx: the most connections of this process. It may be smaller than
// the capacity, and the process then never asks for more permits than that. Where only the fleet's
// capacity should count, set it to the number of goroutines that query at the same time.
//
// MinConns and MinIdleConns are wishes. A connection that no caller waits for is opened only if a
// permit is free, and given up when a caller waits anywhere in the fleet.
//
// # What it does not cover
//
// Cancel requests are not counted; Postgres does not count them either. A connection that the
// network lost without a word leaves a backend that lives on: its permit comes back 20 seconds
// after the close at the latest.
package pgxpool
