// Package redisurl reads the URL of a Redis, of a Redis Cluster or of Sentinels, in the forms of
// go-redis:
//
//	redis://user:password@host:6379/0                              one Redis
//	redis://user:password@host:6379?addr=host2:6379                a Cluster: addr is in the query
//	redis://user:password@host:26379/0?master_name=m&addr=host2:26379   Sentinels: master_name is
//
// The forms exclude each other: redis.ParseURL refuses both keys.
package redisurl

import (
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
)

// A Place is where a URL leads. One field is set.
type Place struct {
	One       *redis.Options
	Cluster   *redis.ClusterOptions
	Sentinels *redis.FailoverOptions
}

// Client returns a client for the place. It dials nothing yet.
func (p Place) Client() redis.UniversalClient {
	switch {
	case p.Cluster != nil:
		return redis.NewClusterClient(p.Cluster)
	case p.Sentinels != nil:
		return redis.NewFailoverClient(p.Sentinels)
	}
	return redis.NewClient(p.One)
}

// Parse reads a URL. An error of go-redis quotes what it refuses, which may be a piece of a
// password: in one that is not percent-encoded, a slash or a question mark ends the host. Then the
// error is ErrUnreadable instead. The caller says what the error is about.
func Parse(raw string) (Place, error) {
	place, err := parse(raw)
	if err == nil {
		return place, nil
	}
	u, notURL := url.Parse(raw)
	if notURL != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment+u.Opaque, "@") {
		return Place{}, ErrUnreadable
	}
	// go-redis decodes an option before it quotes it.
	if query, _ := url.QueryUnescape(u.RawQuery); strings.Contains(query, "@") {
		return Place{}, ErrUnreadable
	}
	return Place{}, err
}

// Refused is an error that quotes nothing of the URL.
type Refused string

func (r Refused) Error() string { return string(r) }

// ErrUnreadable is the error for a URL of which nothing can be quoted.
const ErrUnreadable = Refused("is the port a number, and are user and password percent-encoded?")

func parse(raw string) (place Place, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Place{}, err
	}
	query, notQuery := url.ParseQuery(u.RawQuery)
	switch {
	case notQuery != nil: // go-redis would ignore the option that is not encoded
		err = Refused("the options after the ? cannot be read: separate them by &, and percent-encode " +
			"their values")
	case strings.Contains(u.Host, ","):
		err = Refused("a host has no comma in it: name each further address by an option, " +
			"?addr=host2:6379&addr=host3:6379")
	case query.Has("master_name"):
		place.Sentinels, err = redis.ParseFailoverURL(raw)
		if err == nil {
			err = primaryOnly(place.Sentinels, query.Get("master_name"))
		}
	case query.Has("addr"):
		place.Cluster, err = redis.ParseClusterURL(raw)
		if path := strings.Trim(u.Path, "/"); err == nil && path != "" && path != "0" {
			// go-redis would ignore it.
			err = Refused("a Redis Cluster has no database but 0, and the URL names another")
		}
	default:
		place.One, err = redis.ParseURL(raw)
	}
	if err != nil {
		return Place{}, err
	}
	return place, nil
}

// primaryOnly refuses options by which a client for Sentinels would go to a replica. Scripts fail
// there.
func primaryOnly(o *redis.FailoverOptions, master string) error {
	if master == "" {
		return Refused("the option master_name has no value")
	}
	if o.ReplicaOnly || o.RouteByLatency || o.RouteRandomly {
		return Refused("the options replica_only, route_by_latency and route_randomly are for reads " +
			"from replicas: leave them out")
	}
	return nil
}
