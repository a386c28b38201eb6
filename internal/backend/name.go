package backend

import (
	"net"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// PoolName is "<server>:<port>/<database>", which OpenTelemetry's conventions call a pool by. It is
// "" if cfg names no server. Of several servers it has the first.
func PoolName(cfg *pgconn.Config) string {
	if cfg.Host == "" {
		return ""
	}
	database := cfg.Database
	if database == "" {
		database = cfg.User // as the server does
	}
	return net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port))) + "/" + database
}
