-- sweep: runs behind sessions, in renew. The heartbeat's repairs; a first reader can skip them.

-- Deletes the fields of meta that are no counts; state has read `stored`. Scripts do without them,
-- or end with an error, until the next heartbeat.
local function validate_meta(stored)
  local rest = { 'seq', 'limit', 'early', 'known', 'news' }
  validate_fields({ 'cap', 'gate', 'reserve', 'count', 'skew', 'last' }, stored)
  validate_fields(rest, redis.call('HMGET', meta, unpack(rest)))
  if paused_until > now + DAY then forget_field('gate') end
  if stored[10] and not pause then redis.call('HDEL', meta, 'pause') end
end

-- Cuts off what would last longer than any script lets it; appends such sessions to `ended`. A
-- holder that lives renews its permit within a day.
local function sweep_expiries(ended, last_promise, last_move)
  local late = '(' .. whole(now + 2 * DAY)
  for _, session in ipairs(between(sessions, late, '+inf')) do ended[#ended + 1] = session end
  for _, id in ipairs(between(permits, late, '+inf')) do extend(id, DAY) end
  redis.call('ZREMRANGEBYSCORE', promises, '(' .. whole(last_promise), '+inf')
  redis.call('ZREMRANGEBYSCORE', moves, '(' .. whole(last_move), '+inf')
end
local function sweep_reserves(own) -- minima of sessions that do not exist; `own` is about to
  for _, field in ipairs(redis.call('HKEYS', reserves)) do
    local session = string.match(field, '^%l+ (.*)') or ''
    local keep = session == own or redis.call('ZSCORE', sessions, session)
    if not keep then redis.call('HDEL', reserves, field) end
  end
end
local function sweep_backends() -- of permits that a hand, or a client without backends, removed
  if redis.call('HLEN', backends) <= redis.call('ZCARD', permits) then return end
  for _, id in ipairs(redis.call('HKEYS', backends)) do
    if not redis.call('ZSCORE', permits, id) then redis.call('HDEL', backends, id) end
  end
end
local function restore_sessions(ttl) -- deleted by hand: for a lease, in which the live ones renew
  if redis.call('ZCARD', capacities) <= redis.call('ZCARD', sessions) then return end
  for _, session in ipairs(redis.call('ZRANGE', capacities, 0, -1)) do
    redis.call('ZADD', sessions, 'NX', whole(now + ttl), session)
  end
end
