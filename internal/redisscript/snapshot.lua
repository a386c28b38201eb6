-- snapshot: what an operator wants to see. Changes no permit and no request.
--
-- ARGV   none
-- Returns {now, capacity in force, operator's limit or 0, gate, {UUID, expiry, ...}, {request, ...} in the order of the queue,
--          {session, expiry, ...}, {session, JSON, ...}, {session, declared capacity, ...},
--          {UUIDs in quarantine, or whose backend is still asked for}}
-- Clock: Redis's; what has expired is left out.
-- Twice: reads only.

return {
  now, tonumber(state[2] or 0), tonumber(redis.call('HGET', meta, 'limit') or 0), gate,
  redis.call('ZRANGEBYSCORE', permits, '(' .. whole(now), '+inf', 'WITHSCORES'),
  redis.call('ZRANGE', queue, 0, -1),
  redis.call('ZRANGEBYSCORE', sessions, '(' .. whole(now), '+inf', 'WITHSCORES'),
  redis.call('HGETALL', info),
  redis.call('ZRANGE', capacities, 0, -1, 'WITHSCORES'),
  fence and redis.call('HKEYS', quarantine) or {},
}
