package bench

// cpuParts are the processes whose CPU time is counted.
type cpuParts struct {
	fleet     []int
	postgres  int // with all its descendants
	redis     int
	pgBouncer int // 0: none
}

// cpuSeconds is the CPU time that they have used. Known is false on a system that does not report
// it.
type cpuSeconds struct {
	known                             bool
	fleet, postgres, redis, pgBouncer float64
}

func (c cpuSeconds) since(earlier cpuSeconds) cpuSeconds {
	return cpuSeconds{
		known:     c.known && earlier.known,
		fleet:     c.fleet - earlier.fleet,
		postgres:  c.postgres - earlier.postgres,
		redis:     c.redis - earlier.redis,
		pgBouncer: c.pgBouncer - earlier.pgBouncer,
	}
}

func (c cpuSeconds) total() float64 { return c.fleet + c.postgres + c.redis + c.pgBouncer }
