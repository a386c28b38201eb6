-- sessions: runs behind recalls, in the scripts of sessions and operators. Finds out which sessions
-- are here and what they declare, and forgets those that end.

local function subscribed_others(own) -- the sessions that are subscribed now, but `own`
  local literal, others = string.gsub(channel_of(''), '[%*%?%[%]\\]', '\\%0'), {}
  local found = redis.pcall('PUBSUB', sharded and 'SHARDCHANNELS' or 'CHANNELS', literal .. '*')
  for _, channel in ipairs(found.err and {} or found) do
    local session = string.sub(channel, -18)
    if session ~= own then others[#others + 1] = session end
  end
  return others
end
-- For a caller that expects no time. It cannot tell a clock that was set from a fleet that died: if
-- no heartbeat came for long, it asks who listens. `shortest` is the fleet's shortest lease.
local function notice_step(shortest, own)
  local silent = epoch and last > 0 and now - last > shortest / 2
  if silent and #subscribed_others(own) > 0 then set_now(last) end
end
local function notice_operators_step() -- in the operator's scripts, before they look at `now`
  if tonumber(ARGV[1]) == 0 then notice_step(lease) end
end

local function sum_reserves() -- after minima came or went
  reserve = nil
  local all = redis.call('HGETALL', reserves)
  for i = 1, #all, 2 do
    local free = string.sub(all[i], 1, 5) == 'free ' and tonumber(all[i + 1])
    if is_exact(free) then reserve = (reserve or 0) + math.max(0, math.floor(free)) end
  end
  if reserve then set_meta('reserve', reserve) else redis.call('HDEL', meta, 'reserve') end
end

-- Returns the capacity in force, and the operator's or false. The operator's is in force, else the
-- smallest that a live session declares. Where a hand has deleted what some declare it does not
-- grow until they say so again, and where it has deleted all it stays.
local function effective_capacity()
  local limit = redis.call('HGET', meta, 'limit')
  local declared = limit or redis.call('ZRANGE', capacities, 0, 0, 'WITHSCORES')[2]
  local capacity = tonumber(declared or 0)
  if not (capacity >= 0 and is_exact(capacity)) then capacity = cap end -- no session declares that
  local lost = not limit and redis.call('ZCARD', capacities) < redis.call('ZCARD', sessions)
  if lost then capacity = math.min(declared and capacity or cap, tonumber(stored[1] or capacity)) end
  set_meta('cap', capacity)
  return capacity, limit
end
local function remove_session(session)
  redis.call('ZREM', sessions, session)
  redis.call('ZREM', capacities, session)
  redis.call('HDEL', info, session)
end
-- Forgets what is counted about sessions that ended (a set): it can have drifted from their
-- permits. Other pools are asked for what those owed.
local function forget_sessions(ended)
  for _, promise in ipairs(redis.call('ZRANGE', promises, 0, -1)) do
    local pool = string.match(promise, '^%d+ (.*)') or ''
    if ended[session_of(pool)] then redis.call('ZREM', promises, promise) end
  end
  for _, pool in ipairs(redis.call('ZRANGE', moves, 0, -1)) do
    if ended[session_of(pool)] then redis.call('ZREM', moves, pool) end
  end
  for _, field in ipairs(redis.call('HKEYS', recalls)) do
    if ended[string.sub(field, 2, 19)] then redis.call('HDEL', recalls, field) end
  end
  for _, key in ipairs({ held_counts, debts }) do
    for _, pool in ipairs(redis.call('HKEYS', key)) do
      if ended[session_of(pool)] then
        redis.call('HDEL', key, pool)
        redis.call('ZREM', levels, pool)
      end
    end
  end
  if not reserve then return end
  for name in pairs(ended) do redis.call('HDEL', reserves, 'min ' .. name, 'free ' .. name) end
  sum_reserves()
end
