-- Shared by every script of the semaphore, and put in front of each of them.
--
-- KEYS   1 permits     zset   permit UUID -> expiry of its lease, ms (the original PassBuddy's layout)
--        2 queue       zset   request -> rank; a request is "<ttl ms> <UUID>[ <UUID>...]"
--        3 sessions    zset   session -> expiry, ms
--        4 meta        hash   epoch, seq, cap (effective capacity), limit (an operator's), gate (ms)
--        5 info        hash   session -> JSON for operators
--        6 capacities  zset   session -> the capacity it declares
--        7 shares      zset   sharer -> permits it holds and has not been asked back, ranked (see share_score)
--        8 debts       hash   sharer -> permits it was asked to give back and has not yet
--        9 promises    zset   number -> expiry, ms; one for each permit somebody was asked to give
--
-- A permit's UUID names its owner: characters 1-18 are the session, 1-23 the sharer (one connection pool of
-- that session, or PLAIN for a permit that no pool holds). So ownership needs no record of its own that could drift. UUIDs of
-- other clients (the original's are version 4) belong to no session here and are only counted.
--
-- Clock: Redis's, read once per script. Redis 5 and later replicate the effects of a script, not its text.

local permits, queue, sessions, meta, info = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local capacities, shares, debts, promises = KEYS[6], KEYS[7], KEYS[8], KEYS[9]

local PLAIN = '8000'
local RANK = 1099511627776 -- 2^40: a sharer's rank counts before the order of arrival
local PROMISE = 1000 -- ms that a permit asked back is counted on
local TOLD = 64 -- holders told at most that somebody waits

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- 2^53 ms holds every time there is; %.0f because Lua would print 1.7e+12.
local function whole(n) return string.format('%.0f', n) end
local function session_of(id) return string.sub(id, 1, 18) end
local function sharer_of(id) return string.sub(id, 1, 23) end
local function is_shared(id) return string.sub(id, 20, 23) ~= PLAIN end

local sharded = redis.REDIS_VERSION_NUM and redis.REDIS_VERSION_NUM >= 0x00070000
local function push(session, message)
  -- pcall: a user whom the ACL denies the channel must not have the script end half-way. A push lost costs time only.
  redis.pcall(sharded and 'SPUBLISH' or 'PUBLISH', '{' .. permits .. '}:push:' .. session, message)
end

local function is_live(session)
  local expiry = redis.call('ZSCORE', sessions, session)
  return expiry and tonumber(expiry) > now
end

-- A share's score is the number of permits, less a fraction that grows with time: among equals,
-- the one whose last grant is oldest comes first. 2^43 ms is some 278 years.
local function share_score(held) return held - now / 8796093022208 end

local function share_of(sharer)
  local score = redis.call('ZSCORE', shares, sharer)
  return score and math.max(0, math.ceil(tonumber(score))) or 0
end

-- One permit less for a sharer. If it was asked back, it left the share when it was asked.
local function unshare(id)
  local sharer = sharer_of(id)
  local debt = tonumber(redis.call('HGET', debts, sharer) or 0)
  if debt > 0 then
    if debt > 1 then
      redis.call('HINCRBY', debts, sharer, -1)
    else
      redis.call('HDEL', debts, sharer)
      if share_of(sharer) == 0 then redis.call('ZREM', shares, sharer) end
    end
    local oldest = redis.call('ZRANGE', promises, 0, 0)[1]
    if oldest then redis.call('ZREM', promises, oldest) end
  elseif share_of(sharer) > 1 then
    redis.call('ZINCRBY', shares, -1, sharer)
  else
    redis.call('ZREM', shares, sharer)
  end
end

-- Forgets what is counted about the sharers of sessions that ended: it can have drifted from their permits.
local function forget(ended)
  for _, sharer in ipairs(redis.call('ZRANGE', shares, 0, -1)) do
    if ended[session_of(sharer)] then redis.call('ZREM', shares, sharer) end
  end
  for _, sharer in ipairs(redis.call('HKEYS', debts)) do
    if ended[session_of(sharer)] then redis.call('HDEL', debts, sharer) end
  end
end

-- Removes a permit; true if it was there.
local function drop(id)
  if redis.call('ZREM', permits, id) == 0 then return false end
  if is_shared(id) then unshare(id) end
  return true
end

-- Grants a permit, or extends it; true if it was not held.
local function grant(id, ttl)
  if redis.call('ZADD', permits, whole(now + ttl), id) == 0 then return false end
  if is_shared(id) then
    local sharer = sharer_of(id)
    redis.call('ZADD', shares, share_score(share_of(sharer) + 1), sharer)
  end
  return true
end

-- Removes permits whose lease has expired.
local function purge()
  local dead = redis.call('ZRANGEBYSCORE', permits, '-inf', now, 'LIMIT', 0, 100)
  while #dead > 0 do
    for _, id in ipairs(dead) do drop(id) end
    dead = redis.call('ZRANGEBYSCORE', permits, '-inf', now, 'LIMIT', 0, 100)
  end
end

-- Splits a request into its lease length and its permit UUIDs.
local function parse(request)
  local ttl, rest = string.match(request, '^(%d+) (.+)$')
  local ids = {}
  for id in string.gmatch(rest or '', '%S+') do ids[#ids + 1] = id end
  return tonumber(ttl), ids
end

-- Grants free capacity to the head of the queue, and stops at the first request that does not fit: small ones
-- behind it do not pass. Requests of dead sessions, and those that can never fit, leave.
-- Grants to `own` are appended to `granted`; all others are pushed to their session.
local function pump(capacity, own, granted)
  local free = capacity - redis.call('ZCARD', permits)
  while free > 0 do
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    if not head then return free end
    local ttl, ids = parse(head)
    local session = ids[1] and session_of(ids[1])
    if not session or not ttl or not is_live(session) then
      redis.call('ZREM', queue, head)
    elseif #ids > capacity then
      redis.call('ZREM', queue, head)
      push(session, 'r')
    elseif #ids > free then
      return free
    else
      redis.call('ZREM', queue, head)
      for _, id in ipairs(ids) do
        grant(id, ttl)
        if session == own then granted[#granted + 1] = id end
      end
      if session ~= own then push(session, 'g ' .. whole(now) .. ' ' .. table.concat(ids, ' ')) end
      free = free - #ids
    end
  end
  return free
end

-- The capacity in force: an operator's limit, else the smallest that a live session declares.
local function effective_capacity()
  local limit = redis.call('HGET', meta, 'limit')
  local cap = limit
  if not cap then cap = redis.call('ZRANGE', capacities, 0, 0, 'WITHSCORES')[2] end
  cap = tonumber(cap or 0)
  redis.call('HSET', meta, 'cap', whole(cap))
  return cap
end

-- Counts on one permit of a sharer: it is asked to give it back, and its share is less from now on.
local function promise(sharer)
  redis.call('ZADD', promises, now + PROMISE, redis.call('HINCRBY', meta, 'seq', 1))
  redis.call('ZINCRBY', shares, -1, sharer)
  redis.call('HINCRBY', debts, sharer, 1)
end

-- Max-min fairness. For each waiting request that no permit is promised to yet, in the order of the queue: asks the largest
-- sharer for one in favour of a waiter that has at least two fewer, or, in rotation, of one that has none at all; a
-- holder keeps what it gives in rotation for its minimum tenure. A request of no sharer counts as one that has none:
-- a busy pool gives nothing back by itself. The queue is ordered by share, so
-- the first that has no claim ends it. Once shares are even this finds nothing.
local function balance()
  redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)
  local from = redis.call('ZCARD', promises)
  for _, request in ipairs(redis.call('ZRANGE', queue, from, from + 7)) do
    local id = string.match(request, '^%d+ (%S+)')
    if id then
      local sharer = is_shared(id) and sharer_of(id)
      local share = sharer and share_of(sharer) or 0
      local top = redis.call('ZREVRANGE', shares, 0, 0, 'WITHSCORES')
      local holder, most = top[1], math.ceil(tonumber(top[2] or 0))
      local rotate = most == 1 and share == 0
      if not holder or holder == sharer or not (most >= share + 2 or rotate) then return end
      promise(holder)
      push(session_of(holder), 'b ' .. holder .. (rotate and ' t' or ' f'))
    end
  end
end
