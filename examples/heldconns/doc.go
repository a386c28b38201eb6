// Package heldconns shows what connections do to a fleet that are held for as long as a process
// runs, and each way out that docs/HELD-CONNECTIONS.md tells of. River's clients are the example:
// each takes a connection out of its pool to listen for new jobs. The tests need the servers that
// scripts/setup.sh installs.
package heldconns
