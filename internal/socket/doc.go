// Package socket lets connection permits follow sockets: the one thing that every way of
// ending a connection has in common. Whoever closes it (the driver, its background clean-up, the owner of a hijacked
// connection, a fence, the garbage collector), the permit is given back once, and only when the server's
// backend has ended.
//
//	        Close, Fence, collected            EOF, or drainMost
//	open ----------------------------> closed -------------------> gone
//	            (Leave)                 draining       (Gone)
//
// The server closes its end when the backend exits, so reading to EOF is how we know.
package socket
