// Package socket binds permits to sockets, because every way to end a connection ends its socket.
// The driver, its background clean-up, the owner of a hijacked connection, an abort or the garbage
// collector can close it. The permit is given back once, and only when the server's backend has
// ended.
//
//	        Close, Abort, collected            EOF, or drainTimeout
//	open ----------------------------> closed -------------------> gone
//	  |         (Leave)               draining       (Gone)          ^
//	  |                                  |                           | seen gone over another conn,
//	  |    the server answers, and this  | reset, or drainTimeout    | or the allotment's bound
//	  |    connection does not           v                           |
//	  +------------------------------> in doubt ---------------------+
//
// The server closes its end when the backend exits, so we read to EOF to see that. If the network
// has lost the connection, no EOF comes: see doubt.go. A failed try of an attempt to connect ends
// in other ways: see [Dialer].
package socket
