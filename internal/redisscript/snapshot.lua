-- snapshot: runs behind the shared parts. The state for operators. Changes no permit or request.
-- ARGV   none but common's
-- Returns {now, capacity in force, operator's limit or 0, end of a pause, {UUID, expiry, ...},
--          {request, ...} in the order of the queue, {session, expiry, ...}, {session, JSON, ...},
--          {session, declared capacity, ...}, {UUIDs in quarantine, or still asked for}}
-- Clock: Redis's; what has expired is left out. Twice: reads only.

local live = '(' .. whole(now)
return {
  now, cap, tonumber(redis.call('HGET', meta, 'limit') or 0), paused_until,
  redis.call('ZRANGEBYSCORE', permits, live, '+inf', 'WITHSCORES'),
  redis.call('ZRANGE', queue, 0, -1),
  redis.call('ZRANGEBYSCORE', sessions, live, '+inf', 'WITHSCORES'),
  redis.call('HGETALL', info),
  redis.call('ZRANGE', capacities, 0, -1, 'WITHSCORES'),
  has_backends and redis.call('HKEYS', quarantine) or {},
}
