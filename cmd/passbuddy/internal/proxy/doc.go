// Package proxy is `passbuddy proxy`: a TCP proxy before Postgres that counts the connections of
// programs in any language under a fleet's cap.
//
//	passbuddy proxy --listen 127.0.0.1:6432 --to postgres:5432
//
// # What it does
//
// Each connection of a client has a permit of its own, from before the proxy dials Postgres until
// Postgres has closed its end: then the backend has ended. Clients that find no permit wait in one
// queue, in the order of their arrival. The first packet of a client must be complete within 10 s,
// and it takes no permit before that: so a health check, or a port scan, costs none.
//
// The proxy is no pooler. It keeps no idle connection, and shares none between clients. All it
// reads is the first packet. From then on bytes pass unread, on Linux inside the kernel (splice).
// So TLS goes from the client to Postgres end to end, with SCRAM's channel binding and client
// certificates. Postgres sees the proxy's address: pg_hba.conf must not trust that more than it
// trusts the clients.
//
//	first packet                what the proxy does
//	--------------------------  -----------------------------------------------------------------
//	StartupMessage              waits for a permit, dials, sends it on
//	SSLRequest, GSSENCRequest   the same; Postgres answers it
//	a TLS ClientHello           the same: libpq 17 with sslnegotiation=direct
//	CancelRequest               dials and sends it on, at once: it takes no permit
//	anything else               refused
//
// # Why it is a connection pool of the engine
//
// A fleet shares its permits between pools, by max-min fairness: see docs/FAIRNESS.md. A plain
// [semaphore.Semaphore.Acquire] counts as a pool that holds none, and is served before all that
// hold something. With one of those for each client, a hundred clients of a proxy would each come
// before every Go process. So all clients of one proxy are one pool, as all goroutines of a Go
// process are: the pool asks for as many permits as clients wait, and has --weight.
//
// A recall is honoured with the next connection that ends: its permit goes to the fleet, before any
// client that waits here. The proxy cannot end a connection earlier. Only its client knows whether
// the session has state: a transaction, a temporary table, LISTEN. So permits behind long
// connections do not move. --max bounds how many there can be.
//
// So a pool in a client, such as node-postgres's, should close what lies idle after a moment, and
// be no larger than it needs. Otherwise its idle connections hold permits that its own new
// connections wait for.
//
// # Ends
//
//	what happens                what the proxy does, and when the permit comes back
//	--------------------------  -----------------------------------------------------------------
//	the client closes or dies   closes its sending side to Postgres, and reads on to EOF: then
//	the backend is still busy   counts it as long as it lives, and says so in the log after 15 s
//	... and still sends         drops up to 64 MiB, then resets the connection: the backend ends at
//	                            its next write, and the permit comes back 1 s later
//	Postgres closes             at once; the client still gets what was sent
//	the network loses it        when the kernel finds out, by keepalives: within 2.5 minutes, or
//	                            a quarter of an hour if data was on its way. Postgres may find out
//	                            later: tcp_keepalives_idle
//	the lease is lost           resets both ends: the permit is not ours any more
//	the client gives up, while  leaves the queue at once
//	it waits
//
// A busy backend does not notice that its client has gone. With client_connection_check_interval
// (Postgres 14) it does. The proxy cannot cancel its query, because it has not read the key. It
// does not give up the permit either, however long the query takes: the backend is there.
//
// # Refusals
//
// A client that is not served gets a Postgres error, also in answer to an SSLRequest:
//
//	53300  no permit became free within --wait; or --max-clients are here
//	57P03  Redis cannot be asked, or the proxy is being stopped
//	08001  Postgres cannot be reached
//	08P01  the first packet is none of Postgres's protocol
//
// libpq shows no text of an error that comes before TLS, since 17.1, 16.5 and 15.9 ("server sent an
// error response during SSL exchange"), and other drivers say something similar: the log has the
// reason. To answer N, "no TLS here", would be worse: with sslmode=prefer the password exchange
// would go on unencrypted, and with require the user would look for the mistake in the server.
//
// # Limits
//
// A cancel request inside TLS (libpq's PQcancelBlocking, not psql's Ctrl-C) cannot be told from a
// session: it takes a permit for the milliseconds that it lasts, and waits for it.
package proxy
