-- repair: runs behind common. Values that no script of ours writes; a first reader can skip this.
--
-- Another client, or an operator's hand, can write anything into the keys. The scripts believe what
-- they could have written. For any other value they take one that errs on the safe side, or delete
-- it; if it was a field of meta, the state counts as lost. A heartbeat checks all of meta, and the
-- fleet's first one in a lease's time sweeps away what no script would remove.

local function is_exact(n) return n and n * n < 2 ^ 106 end -- |n| < 2^53, and not nan
local function is_count(n) return n and n >= 0 and n < 2 ^ 53 and n % 1 == 0 end

-- These return 0, the shortest lease, and `default` for a value that is none of theirs.
local function count_of(value)
  local n = tonumber(value or 0)
  return is_count(n) and n or 0
end
local function lease_of(value)
  local n = tonumber(value or '')
  return n and n >= SHORTEST and n <= DAY and n or SHORTEST
end
local function read_meta(field, default, most)
  local n = tonumber(redis.call('HGET', meta, field) or default)
  return n and n >= 0 and n <= most and n or default
end

local function forget_field(field) -- and with it the state, as in any other loss
  redis.call('HDEL', meta, field, 'epoch')
  epoch = false
end
local function validate_fields(fields, values) -- deletes fields that are no counts, and the values
  for i, field in ipairs(fields) do
    local n = tonumber(values[i] or 0)
    if not is_count(n and field == 'skew' and math.abs(n) or n) then
      forget_field(field)
      values[i] = false
    end
  end
end
-- Does that for all of meta. Scripts do without, or with an error, until the next heartbeat.
-- state has read `stored`.
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
