-- renew: joins a session, and keeps it, its waiters and all its permits alive. The heartbeat.
--
-- ARGV   1 session   2 the epoch it knows, '' if none   3 lease, ms   4 capacity it declares
--        5 JSON about it for operators   6 an epoch to use if there is none
--        7 number of permits, 8 of sharers, 9 the operator's capacity it knows, 0 if none: restored if state was lost
--        then the permits' UUIDs
--        then for each sharer: its name, the permits it holds, how many of those it knows it was asked to give back
-- Returns {'ok', now, epoch, capacity in force, waiting, sharded, gate, {UUIDs not held any more}, limit, {debts}}
--          limit     an operator's capacity, 0 if none
--          debts     for each sharer, how many more it was asked to give back than it knows: the push was lost, or is on its way
--          sharded   1 if pushes go by sharded pub/sub, else 0
--          gate      ms until which nothing new is granted, because state was lost
-- Clock: Redis's.
-- Twice: only sets expiries, and re-asserts what its caller holds.
--
-- State loss. A session that knows an epoch and finds none, or another, sees that Redis forgot. So does the first
-- session to arrive if others are still subscribed. Then nothing new is granted for one lease: by then every holder has either re-asserted
-- what it holds or stopped trusting it. A semaphore nobody knows is new, and pays nothing.

local own, known, ttl, declared = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local n_permits, n_sharers, limit = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local FIRST = 10

-- The sessions that are subscribed now, this one excepted.
local function listening()
  local literal = string.gsub(permits, '[%*%?%[%]\\]', '\\%0')
  local found = redis.pcall('PUBSUB', sharded and 'SHARDCHANNELS' or 'CHANNELS', '{' .. literal .. '}:push:*')
  local others = {}
  if found.err then return others end
  for _, channel in ipairs(found) do
    local session = string.sub(channel, -18)
    if session ~= own then others[#others + 1] = session end
  end
  return others
end

-- State was lost: holds grants back for one lease, and has all who listen re-assert what they hold now.
local function close_gate(others)
  for _, session in ipairs(others) do push(session, 'l') end
  return now + ttl
end

local epoch = redis.call('HGET', meta, 'epoch')
local gate = tonumber(redis.call('HGET', meta, 'gate') or 0)
local lost = known ~= '' and known ~= epoch
if not epoch then
  epoch = ARGV[6]
  local others = listening()
  gate = (lost or #others > 0) and close_gate(others) or 0
  redis.call('HSET', meta, 'epoch', epoch, 'gate', whole(gate))
elseif lost and gate == 0 then -- whoever came first could not know that others hold permits
  gate = close_gate(listening())
  redis.call('HSET', meta, 'gate', whole(gate))
end
if lost and limit > 0 and redis.call('HEXISTS', meta, 'limit') == 0 then
  redis.call('HSET', meta, 'limit', whole(limit))
end

local gone = redis.call('ZRANGEBYSCORE', sessions, '-inf', now, 'LIMIT', 0, 100)
local ended = {}
for _, session in ipairs(gone) do
  ended[session] = session ~= own
  redis.call('ZREM', sessions, session)
  redis.call('ZREM', capacities, session)
  redis.call('HDEL', info, session)
end
if #gone > 0 then forget(ended) end
redis.call('ZADD', sessions, whole(now + ttl), own)
redis.call('ZADD', capacities, declared, own)
redis.call('HSET', info, own, ARGV[5])
local capacity = effective_capacity()

purge()
local missing = {}
local expiry = whole(now + ttl)
local CHUNK = 1000
for from = 1, n_permits, CHUNK do
  local batch, upto = {}, math.min(from + CHUNK - 1, n_permits)
  for i = from, upto do
    local id = ARGV[FIRST + i - 1]
    if lost then
      -- Truth first: its connection exists, whether or not there is room.
      if now < gate or redis.call('ZCARD', permits) < capacity or redis.call('ZSCORE', permits, id) then
        redis.call('ZADD', permits, expiry, id)
      else
        missing[#missing + 1] = id
      end
    else
      batch[#batch + 1] = expiry
      batch[#batch + 1] = id
    end
  end
  if #batch > 0 then
    -- CH counts the members that changed; an expiry always does, unless two renewals meet within a millisecond.
    local changed = redis.call('ZADD', permits, 'XX', 'CH', unpack(batch))
    if changed < #batch / 2 then
      for i = from, upto do
        local id = ARGV[FIRST + i - 1]
        if not redis.call('ZSCORE', permits, id) then missing[#missing + 1] = id end
      end
    end
  end
end

local at = FIRST + n_permits
local unknown = {}
for i = 1, n_sharers do
  local sharer, held, owed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  local debt = math.min(held, math.max(owed, tonumber(redis.call('HGET', debts, sharer) or 0)))
  unknown[i] = math.max(0, debt - owed)
  local share = math.max(0, held - debt)
  if share_of(sharer) ~= share then
    if share > 0 then redis.call('ZADD', shares, share_score(share), sharer) else redis.call('ZREM', shares, sharer) end
  end
  if debt > 0 then redis.call('HSET', debts, sharer, debt) else redis.call('HDEL', debts, sharer) end
end

if now >= gate then
  pump(capacity, '', {})
  if redis.call('ZCARD', queue) > 0 then balance() end
end
return { 'ok', now, epoch, capacity, redis.call('ZCARD', queue), sharded and 1 or 0, gate, missing,
  tonumber(redis.call('HGET', meta, 'limit') or 0), unknown }
