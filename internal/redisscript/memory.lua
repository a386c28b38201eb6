-- memory: runs behind handover in exchange, else first. Finds out whether Redis is at maxmemory.
-- Redis refuses a command that may use memory only as the first write of a script; it lets a script
-- end that has begun to write. So the script begins with such a command, one that changes nothing.
-- If Redis refuses it, the script sets `full` and writes with a command that Redis never refuses,
-- HDEL of no field. Then renewals and releases go on, and what is given back goes to requests in
-- the queue. A session that joins is refused here, and a new request in exchange. The rest writes
-- little, and what is there already bounds it.
-- ARGV   3 '' for a session that joins
-- Clock: none. Twice: changes nothing.

local full = false
do
  local tried = redis.pcall('ZADD', KEYS[1], 'XX', 'INCR', 0, '')
  if type(tried) == 'table' and tried.err and string.find(tried.err, 'OOM', 1, true) then
    if ARGV[3] == '' then return tried end
    full = true
    redis.call('HDEL', KEYS[3], '')
  end
end
