-- shares: what each sharer and each session holds and owes, minima, and the capacity. After common, before every script.

local MOVE = 10000 -- us that a move costs, while nobody has measured one
local SLOWEST = 60000000 -- us; what is said to cost more is taken for this
local PACE = 20 -- ms between two moves in rotation, at least
local REPAY = 20 -- times its cost that a move lasts ...
local PATIENCE = 2000 -- ... but a pool should wait no longer than this, ms, ...
local HASTE = 6 -- ... as long as a move lasts this many times its cost, and no more than this part of the permits moves at once

-- What a session's minimum still lacks; below 0, how many permits it could give back. nil if it has no minimum.
local function lacking(session)
  return reserve and tonumber(redis.call('HGET', reserves, 'free ' .. session) or '')
end

-- Counts n permits more (or, below 0, fewer) that a session holds and does not owe.
local function reckon(session, n)
  local free = lacking(session)
  if not free then return end
  redis.call('HSET', reserves, 'free ' .. session, free - n)
  local change = math.max(0, free - n) - math.max(0, free)
  if change ~= 0 then reserve = redis.call('HINCRBY', meta, 'reserve', change) end
end

-- A count that scripts keep in a hash. What somebody's hand has put there instead counts as none.
local function count_of(value)
  local n = tonumber(value or 0)
  return n and n >= 0 and n < 2 ^ 53 and n % 1 == 0 and n or 0
end

local function debt_of(sharer) return count_of(redis.call('HGET', debts, sharer)) end
local function held_by(sharer) return count_of(redis.call('HGET', helds, sharer)) end
local function share_of(sharer) return math.max(0, held_by(sharer) - debt_of(sharer)) end

-- A number that scripts keep in meta for the pace of moves. What somebody's hand has put there instead counts as nothing.
local function pace_of(field, default, most)
  local n = tonumber(redis.call('HGET', meta, field) or default)
  if n and n >= 0 and n <= most then return n end
  return default
end

-- The pace of rotation: see next_turn. How long a permit stays with a pool of weight 1, ms.
local function cycle(capacity)
  local cost = pace_of('move', MOVE, SLOWEST) / 1000
  local needy = redis.call('ZCOUNT', queue, whole(LEVELS * RANK), '(' .. whole((LEVELS + 1) * RANK))
  local wish = math.max(REPAY * cost, PACE * capacity)
  return math.max(math.min(wish, PATIENCE * capacity / math.max(1, needy)), HASTE * cost), cost
end

-- Puts a sharer where it belongs among those that can give a permit. Its level is what it would hold, for each unit of its weight,
-- after it gave one; less a fraction that grows with time, so that among equals the one that changed longest ago
-- comes first. One of more weight counts as changed later, by as many cycles more as it may keep its last permit. 2^43 ms is some 278 years.
local function place(sharer, share)
  if share > 0 then
    local since = now
    if share == 1 and weight_of(sharer) > 1 then since = now + (weight_of(sharer) - 1) * cycle(tonumber(state[2] or 0)) end
    redis.call('ZADD', shares, (share - 1) / weight_of(sharer) - since / 8796093022208, sharer)
  else
    redis.call('ZREM', shares, sharer)
  end
end

-- Ends the first promise that rests on a sharer: it has given what it was asked for.
local function keep_promise(sharer)
  for _, promise in ipairs(redis.call('ZRANGE', promises, 0, -1)) do
    if string.match(promise, '^%d+ (%S+)') == sharer then
      redis.call('ZREM', promises, promise)
      return
    end
  end
end

-- One permit less for a sharer; true if it was asked back, and so was not counted any more.
local function unshare(sharer)
  local held, debt = held_by(sharer) - 1, debt_of(sharer)
  if held > 0 then
    redis.call('HSET', helds, sharer, held)
  else
    redis.call('HDEL', helds, sharer)
    redis.call('ZREM', moves, sharer)
  end
  if debt == 0 then
    place(sharer, held)
    return false
  end
  if debt > 1 then redis.call('HSET', debts, sharer, debt - 1) else redis.call('HDEL', debts, sharer) end
  keep_promise(sharer)
  return true
end

-- Undoes what a permit counts for its session and its sharer.
local function disown(id)
  local owed = is_shared(id) and unshare(sharer_of(id))
  if reserve and not owed then reckon(session_of(id), -1) end
end

-- Removes a permit, and what is known of its backend; true if it was there.
local function drop(id)
  local owned = not fence or redis.call('HDEL', backends, id) == 1 or redis.call('HDEL', quarantine, id) == 0
  if redis.call('ZREM', permits, id) == 0 then return false end
  if is_ours(id) then change = change - 1 end
  if owned then disown(id) end
  return true
end

-- Grants a permit, or extends it; true if it was not held.
local function grant(id, ttl)
  if redis.call('ZADD', permits, whole(now + ttl), id) == 0 then return false end
  change = change + 1
  if is_shared(id) then
    local sharer = sharer_of(id)
    local held = held_by(sharer) + 1
    redis.call('HSET', helds, sharer, held)
    place(sharer, held - debt_of(sharer))
  end
  if reserve then reckon(session_of(id), 1) end
  return true
end

-- The capacity in force: an operator's limit, else the smallest that a live session declares.
local function effective_capacity()
  local limit = redis.call('HGET', meta, 'limit')
  local cap = limit
  if not cap then cap = redis.call('ZRANGE', capacities, 0, 0, 'WITHSCORES')[2] end
  cap = tonumber(cap or 0)
  if not (cap >= 0 and cap < 2 ^ 53) then cap = tonumber(state[2] or 0) end -- no session declares that
  if not limit and redis.call('ZCARD', capacities) < redis.call('ZCARD', sessions) then
    cap = math.min(cap, tonumber(state[2] or cap)) -- some of what was declared is lost, until its sessions say it again
  end
  redis.call('HSET', meta, 'cap', whole(cap))
  return cap
end

-- Adds up what is reserved, after minima came or went.
local function sum_reserves()
  reserve = nil
  local all = redis.call('HGETALL', reserves)
  for i = 1, #all, 2 do
    local free = string.sub(all[i], 1, 5) == 'free ' and tonumber(all[i + 1])
    if free and free * free < 2 ^ 106 then reserve = (reserve or 0) + math.max(0, math.floor(free)) end
  end
  if reserve then redis.call('HSET', meta, 'reserve', reserve) else redis.call('HDEL', meta, 'reserve') end
end

-- Forgets what is counted about sessions that ended: it can have drifted from their permits. What they were asked for, others are asked for.
local function forget(ended)
  for _, promise in ipairs(redis.call('ZRANGE', promises, 0, -1)) do
    if ended[string.match(promise, '^%d+ (' .. string.rep('.', 18) .. ')') or ''] then redis.call('ZREM', promises, promise) end
  end
  for _, sharer in ipairs(redis.call('ZRANGE', moves, 0, -1)) do
    if ended[session_of(sharer)] then redis.call('ZREM', moves, sharer) end
  end
  for _, field in ipairs(redis.call('HKEYS', recalls)) do
    if ended[string.sub(field, 2, 19)] then redis.call('HDEL', recalls, field) end
  end
  for _, key in ipairs({ helds, debts }) do
    for _, sharer in ipairs(redis.call('HKEYS', key)) do
      if ended[session_of(sharer)] then
        redis.call('HDEL', key, sharer)
        redis.call('ZREM', shares, sharer)
      end
    end
  end
  if not reserve then return end
  for session in pairs(ended) do
    if ended[session] then redis.call('HDEL', reserves, 'min ' .. session, 'free ' .. session) end
  end
  sum_reserves()
end
