// Package holdrun is `passbuddy run`: it holds permits of a fleet while a command runs. So psql, a
// migration, a dump or a batch in any language counts under the fleet's cap.
//
//	passbuddy run -- psql "$DATABASE_URL"
//	passbuddy run -n 5 --wait 10m -- pg_dump -j 4 -Fd -f dump "$DATABASE_URL"
//
// # What it counts
//
// A permit stands for one connection: give -n the most that the command opens. pg_dump -j 4 opens
// five. The permits are granted together or not at all, before the command starts. They are given
// back when it has ended, and --linger later: its backends end some milliseconds after it. The
// session declares no capacity of its own: see package membership.
//
// # Exit codes
//
// The command's own, 128+n if signal n ended it. Otherwise:
//
//	2    the flags are wrong, or nobody has said what the capacity is
//	69   Redis cannot be asked
//	74   the lease was lost while the command ran, and the command was ended for that
//	75   no permit within --wait; nothing was run
//	126  the command cannot be executed
//	127  there is no such command
//
// # Signals and the terminal
//
// The command has a process group of its own. In a terminal that group becomes the foreground one,
// as a shell would make it: psql reads the keyboard, and Ctrl-C and Ctrl-\ reach the command and
// its children, not this process. A command that Ctrl-C ended ends this process by SIGINT too, and
// what else is in its group, so that a script stops at Ctrl-C as it would without us.
//
// INT, TERM, HUP, QUIT, USR1, USR2, WINCH and CONT that are sent to this process are sent on to the
// command. While it still waits for permits, INT, TERM, HUP and QUIT end the wait.
//
// Ctrl-Z has no effect: the command is continued at once. A shell that takes its terminal back
// would have to stop this process too, and then nobody would renew the lease.
//
// # What ends the command
//
// A lost lease: SIGTERM to the command's process group, and SIGKILL after --grace. By default that
// is a tenth of --ttl, for which Redis still keeps a lost lease from others. A session that was
// frozen for longer finds its permits granted to others already.
//
// The death of this process, SIGKILL included: a second process of ours, the guard, is the leader
// of the command's group, and does the same. On Linux the kernel also sends SIGTERM to the command
// at once (PR_SET_PDEATHSIG). Then only a lease is left, until it expires.
//
// Processes that the command leaves behind in its group when it ends, such as a child in the
// background, are ended before the permits are given back.
//
// # What it cannot do
//
//   - A backend that is busy when its client dies goes on until it next writes, or until
//     client_connection_check_interval (Postgres 14). This package does not see backends:
//     `passbuddy proxy` does.
//   - A process that leaves the group is not followed: a daemon, or a job of an interactive shell.
//   - If this process and its guard are killed together, the kernel's SIGTERM on Linux is all that
//     reaches the command, and its children live on. Elsewhere the command lives on, too.
package holdrun
