// Package integration holds the tests against real servers: fleets of real processes on a real
// Redis and a real PostgreSQL, with pg_stat_activity as the witness. Nothing imports it.
//
// The servers are throwaway instances on free ports. How long each run takes is a flag:
//
//	go test ./integration -run TestCap -load 20s -v
//	go test ./integration -run TestChaos -chaos 10m -seed 3 -v -timeout 0
package integration
