// Package socket lets permits follow sockets: the one thing that every way of ending a connection
// has in common. The driver, its background clean-up, the owner of a hijacked connection, an abort
// or the garbage collector can close it. The permit is given back once, and only when the server's
// backend has ended.
//
//	        Close, Abort, collected            EOF, or drainTimeout
//	open ----------------------------> closed -------------------> gone
//	  |         (Leave)               draining       (Gone)          ^
//	  |                                  |                           | seen gone over another connection,
//	  |    the server answers, and this  | reset, or drainTimeout    | or the allotment's bound
//	  |    connection does not           v                           |
//	  +------------------------------> in doubt ---------------------+
//
// The server closes its end when the backend exits, so reading to EOF is how we know. Where the
// network has lost the connection no EOF comes: see doubt.go. A try of an attempt to connect that
// came to nothing ends in its own ways: see [Dialer].
package socket
