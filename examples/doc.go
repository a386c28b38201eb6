// Package examples has no code. Each of its folders is a complete program that shows how one
// library, or one kind of deployment, is put under a cap: docs/LIBRARIES.md quotes them.
//
// They read DATABASE_URL and REDIS_URL, and work on the table of schema.sql:
//
//	export DATABASE_URL=postgres://user@127.0.0.1/db REDIS_URL=redis://127.0.0.1:6379/0
//	psql -f examples/schema.sql "$DATABASE_URL"
//	go run ./examples/pgxpool
//
// The tests run each of them as two processes at once, with pg_stat_activity as the witness.
package examples
