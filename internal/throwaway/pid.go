package throwaway

// PID is the process id of the server's first process, 0 when it is not running. Its backends are
// its children.
func (p *Postgres) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.server.pid()
}

// PID is the process id, 0 when the server is not running.
func (r *Redis) PID() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server.pid()
}

func (c *child) pid() int {
	if c == nil {
		return 0
	}
	return c.cmd.Process.Pid
}
