// Package allotment keeps the permits that one connection pool of this process owns, apart from any
// one connection, and the local queue for them.
//
// A slot is the place of one connection, from before its dial until its backend has ended. It has a
// permit for all that time. With Options.PerCheckout a slot is one checkout, and never idle.
//
// # Invariant
//
// At every instant, open + opening + closing connections <= permits owned. The only door to a new
// connection is newSlot, which takes a spare permit under the lock. [Slot.Gone] is the only way
// back, after the server's backend has ended. The one exception is lend, in doubt.go.
//
// # Turns
//
// A caller takes a turn ([Allotment.Enter]) before it may take a connection from its pool or open
// one, and gives the turn back with the connection. Turns prevent self-starvation. A caller waits
// here, in one FIFO queue that both a local return and a grant of the engine serve. It never waits
// inside the pool's open, where a return could not reach it.
//
// How many turns are free is derived, never counted (see available):
//
//	spare permits + idle slots - slots to be evicted - callers on their way to a slot
//
// # States of a slot
//
//	spare permit
//	   | Open, OpenNow, OpenBackground, OpenExtra, lend
//	   |
//	   |      +------------------ CheckOut ------------------+
//	   v      |                                              v
//	  opening +--- Ready ---> idle --- CheckOut, Retake, --> out
//	   |                       | ^     claim                 | |
//	   |                       | |                           | |
//	   |                       | +---- Return, Keep, Park, --+ |
//	   |                       |       a claim given up        |
//	   | Leave, LeaveAt,       | the same, Evict*,             | Leave, LeaveAt, Doubt, Discard,
//	   | Doubt                 | LeaveIdle, LeaveUncounted,    | Return and Park: it pays a debt
//	   v                       v Sweep*                        v or cannot stay
//	  leaving <------------------------------------------------+
//	   | Gone, lend
//	   v
//	  gone <--- Gone, from any state: after a dial that failed, at the end of a checkout,
//	            or when the network told the socket first
//
// Return and Park of a slot that is not out leave its state, or make it leave, too.
//
// # Ends
//
//	what ends        by                                its permit
//	---------------  --------------------------------  -----------------------------------------
//	a turn           Exit, or with a checkout          is for the next caller
//	a checkout       Return, Keep, Park                stays with the slot, which is idle; or the
//	                                                   slot leaves, and pays a debt
//	a connection     Leave and the others above        is counted until Gone
//	a slot           Gone                              becomes spare, or is given
//	a doubt          Gone, doubtTimeout, server down   the same: see doubt.go
//	a lease          Lost, then Pool.Abort and Gone    is not ours; given with Options.Fence, to say
//	                                                   that its backend is gone
//	a spare permit   give: it pays a debt, its lease   goes to the engine
//	                 has ended, or no caller needs it
//	the session      Closed                            is given as its slot ends
//
// # Where to read
//
// settle brings everything to rest after a change (settle.go). Callers go through turn.go, open.go
// and end.go. databasesql.go has the methods that only that integration calls, and pgxpool.go those
// that only the other calls. The engine calls those of recall.go, offer.go and loss.go. The
// counters are three types with their invariants: slots, permits and debts. report.go has
// the figures that operators see.
package allotment
