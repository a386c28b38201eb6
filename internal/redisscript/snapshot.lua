-- snapshot: what an operator wants to see. Changes nothing.
--
-- ARGV   none
-- Returns {now, capacity in force, operator's limit or 0, gate, {UUID, expiry, ...}, {request, ...} in the order of the queue,
--          {session, expiry, ...}, {session, JSON, ...}, {session, declared capacity, ...}}
-- Clock: Redis's; what has expired is left out.
-- Twice: reads only.

local state = redis.call('HMGET', meta, 'cap', 'limit', 'gate')
return {
  now, tonumber(state[1] or 0), tonumber(state[2] or 0), tonumber(state[3] or 0),
  redis.call('ZRANGEBYSCORE', permits, '(' .. whole(now), '+inf', 'WITHSCORES'),
  redis.call('ZRANGE', queue, 0, -1),
  redis.call('ZRANGEBYSCORE', sessions, '(' .. whole(now), '+inf', 'WITHSCORES'),
  redis.call('HGETALL', info),
  redis.call('ZRANGE', capacities, 0, -1, 'WITHSCORES'),
}
