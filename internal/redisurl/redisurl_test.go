package redisurl

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestParse(t *testing.T) {
	one, err := Parse("rediss://u:p@h:1/3?read_timeout=6s")
	if err != nil || one.One == nil || one.One.Addr != "h:1" || one.One.DB != 3 ||
		one.One.TLSConfig == nil {
		t.Errorf("one Redis: %+v, %v", one, err)
	}
	cluster, err := Parse("rediss://u:p@h:1?addr=h2:2&addr=h3:3&max_redirects=4")
	if err != nil || cluster.Cluster == nil || cluster.Cluster.Username != "u" ||
		!slices.Equal(cluster.Cluster.Addrs, []string{"h:1", "h2:2", "h3:3"}) ||
		cluster.Cluster.TLSConfig == nil || cluster.Cluster.MaxRedirects != 4 {
		t.Errorf("a Cluster: %+v, %v", cluster, err)
	}
	failover, err := Parse("redis://su:sp@h:1/2?master_name=m&addr=h2:2&username=u&password=p")
	o := failover.Sentinels
	if err != nil || o == nil || o.MasterName != "m" || o.DB != 2 || o.Username != "u" ||
		o.Password != "p" || o.SentinelUsername != "su" || o.SentinelPassword != "sp" ||
		!slices.Equal(o.SentinelAddrs, []string{"h:1", "h2:2"}) {
		t.Errorf("Sentinels: %+v, %v", o, err)
	}
	for place, want := range map[Place]string{one: "one", cluster: "cluster", failover: "one"} {
		client := place.Client()
		_, isCluster := client.(*redis.ClusterClient)
		if isCluster != (want == "cluster") {
			t.Errorf("%+v: a client of type %T", place, client)
		}
		_ = client.Close()
	}
}

func TestRefused(t *testing.T) {
	for raw, want := range map[string]string{
		"redis://h/3?addr=h2:2":                         "no database but 0",
		"redis://h?addr=h2":                             "addr",
		"redis://h?addr=h2:2&db=3":                      "db",
		"unix:///x?addr=h2:2":                           "scheme",
		"redis://h?master_name=":                        "master_name",
		"redis://h?master_name=m&replica_only=true":     "replica_only",
		"redis://h?master_name=m&route_by_latency=true": "route_by_latency",
		"redis://h?master_name=m&route_randomly=true":   "route_randomly",
		"redis://h?master_name=m&capacity=3":            "capacity",
		"redis://h:1,h2:2":                              "?addr=",
		"redis://u:s3cret@h?addr=h2:2&x=u@h":            "percent-encoded",
		"redis://h?addr=u:s3cret%40h2:2":                "percent-encoded",
		"redis://h?addr=h2:2;addr=h3:3":                 "options after the ?",
		"redis://h?master_name=m&password=5%of":         "options after the ?",
	} {
		if place, err := Parse(raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", raw, place, err, want)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: a password in %v", raw, err)
		}
	}
	for _, fine := range []string{"redis://h/0?addr=h2:2", "redis://h/?addr=h:6379"} {
		if _, err := Parse(fine); err != nil {
			t.Errorf("%s: %v", fine, err)
		}
	}
}

// No error shows any part of a password, however its URL is written.
func FuzzURL(f *testing.F) {
	const secret = "hunter2secret"
	for _, seed := range []string{
		"redis://user:SECRET@127.0.0.1:6379/0", "redis://user:1/SECRET@127.0.0.1",
		"redis://user:1?SECRET@127.0.0.1", "redis://user:1#SECRET@127.0.0.1",
		"redis://:SECRET@[::1", "rediss://u:p@x/SECRET@h",
		"unix://u:SECRET@/tmp/x?db=y", "redis://u:/SECRET@h:1/x", "u:SECRET@h", "redis:u:SECRET@h",
		"redis://u:%zzSECRET@h", "redis://u:SECRET@h/x", "redis://u:SECRET@h?pool_size=x",
		"redis://u:SECRET@h:x", "redis://u:SECRET@h/3?addr=x:1", "redis://u:SECRET@h?addr=x",
		"redis://u:1?addr=SECRET@h", "redis://u:SECRET@h?master_name=",
		"redis://u:1?master_name=SECRET@h",
		"redis://u:SECRET@h/x?master_name=m&addr=y:1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		raw := strings.ReplaceAll(text, "SECRET", secret)
		place, err := Parse(raw)
		switch {
		case err == nil && place == Place{}:
			t.Error("neither options nor an error")
		case err == nil:
			return
		case strings.Contains(raw, secret+"@") && strings.Contains(err.Error(), secret) &&
			!openly(raw, secret):
			t.Errorf("%q: %v", raw, err)
		}
	})
}

// openly: the secret also stands in a place that is not a password's, where an error may quote it.
func openly(raw, secret string) bool {
	u, err := url.Parse(raw)
	return err == nil &&
		(strings.Contains(u.Scheme, secret) ||
			!strings.Contains(u.Path+u.RawQuery+u.Fragment+u.Opaque, "@") &&
				strings.Contains(u.Path+u.RawQuery, secret))
}
