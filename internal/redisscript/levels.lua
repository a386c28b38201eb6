-- levels: runs behind state. Counts what pools and sessions hold and owe; minima.

local MOVE = 10000 -- us that a move costs, while nobody has measured one
local SLOWEST = 60000000 -- us; a move that is said to cost more counts as this
local PACE = 20 -- ms between two moves in rotation, at least
local REPAY = 20 -- times its cost that a move lasts ...
local PATIENCE = 2000 -- ... but a pool should wait no longer than this, ms, ...
local HASTE = 6 -- ... while a move lasts HASTE times its cost, and 1 permit in HASTE moves at most
local AGE = 8796093022208 -- 2^43 ms, some 278 years
local EVENTS = 200

-- Returns "free": a session's minimum less the permits that it holds and does not owe. The minimum
-- lacks so many; below 0, the session could give so many back. nil if it has no minimum.
local function min_lacks(session)
  return reserve and tonumber(redis.call('HGET', reserves, 'free ' .. session) or '')
end
local function adjust_min(session, n) -- it holds and does not owe n permits more; below 0, fewer
  local free = min_lacks(session)
  if not free then return end
  redis.call('HSET', reserves, 'free ' .. session, free - n)
  local added = math.max(0, free - n) - math.max(0, free)
  if added ~= 0 then reserve = redis.call('HINCRBY', meta, 'reserve', added) end
end
local function set_count(key, pool, n)
  if n > 0 then redis.call('HSET', key, pool, n) else redis.call('HDEL', key, pool) end
end
local function debt_of(pool) return count_of(redis.call('HGET', debts, pool)) end
local function held_by(pool) return count_of(redis.call('HGET', held_counts, pool)) end
local function kept_by(pool) return math.max(0, held_by(pool) - debt_of(pool)) end -- not owed

local function learn_move(session, cost) -- what it has measured a move to cost, us; 0: nothing new
  if cost <= 0 then return end
  for _, pool in ipairs(redis.call('ZRANGE', moves, 0, -1)) do
    if session_of(pool) == session then redis.call('ZREM', moves, pool) end
  end
  local known = read_meta('move', cost, SLOWEST)
  set_meta('move', math.floor(known + (math.min(cost, SLOWEST) - known) / 8))
end

-- Returns how long rotation leaves a permit with a pool of weight 1, and what a move costs, ms.
local function cycle(capacity)
  local cost = read_meta('move', MOVE, SLOWEST) / 1000
  local needy = redis.call('ZCOUNT', queue, whole(LEVELS * RANK), '(' .. whole((LEVELS + 1) * RANK))
  local wish = math.max(REPAY * cost, PACE * capacity)
  return math.max(math.min(wish, PATIENCE * capacity / math.max(1, needy)), HASTE * cost), cost
end
-- Puts a pool where it belongs among those that can give a permit. Its level is the number of
-- permits that it would keep after it gave one, divided by its weight. A fraction that grows with
-- time is subtracted, so among equals the pool that changed longest ago comes first. A pool of more
-- weight may keep its last permit for more cycles: it counts as changed later by those.
local function place(pool, kept)
  if kept <= 0 then return redis.call('ZREM', levels, pool) end
  local weight, since = weight_of(pool), now
  if kept == 1 and weight > 1 then since = now + (weight - 1) * cycle(cap) end
  redis.call('ZADD', levels, (kept - 1) / weight - since / AGE, pool)
end

local function fulfil_promise(pool) -- the first that rests on a pool: it gave what it owed
  for _, p in ipairs(redis.call('ZRANGE', promises, 0, -1)) do
    if string.match(p, '^%d+ (%S+)') == pool then return redis.call('ZREM', promises, p) end
  end
end

-- Undoes what a permit counts for its pool, and, if the pool did not owe it, for its session.
local function uncount(id)
  local debt = 0
  if is_pooled(id) then
    local pool = pool_of(id)
    local held = held_by(pool) - 1
    debt = debt_of(pool)
    set_count(held_counts, pool, held)
    if held <= 0 then redis.call('ZREM', moves, pool) end
    if debt == 0 then
      place(pool, held)
    else
      set_count(debts, pool, debt - 1)
      fulfil_promise(pool)
    end
  end
  if reserve and debt == 0 then adjust_min(session_of(id), -1) end
end

local function release(id) -- and what is known of its backend; returns whether it was there
  local counted = not has_backends or redis.call('HDEL', backends, id) == 1
    or redis.call('HDEL', quarantine, id) == 0
  if redis.call('ZREM', permits, id) == 0 then return false end
  if is_ours(id) then change = change - 1 end
  if counted then uncount(id) end
  return true
end

local function grant(id, ttl) -- or extends its lease, if it is held
  if extend(id, ttl) == 0 then return end
  change = change + 1
  if is_pooled(id) then
    local pool = pool_of(id)
    local held = held_by(pool) + 1
    set_count(held_counts, pool, held)
    place(pool, held - debt_of(pool))
  end
  if reserve then adjust_min(session_of(id), 1) end
end

-- Adds to the fleet's log of changes, which keeps some EVENTS entries. `by` is an operator; `about`
-- is JSON about the session, nil: as in info. pcall: a key of another type, or an ACL without XADD,
-- costs the log and nothing else.
local function owner_of(session, about)
  local known, all = about or redis.call('HGET', info, session), nil
  if known then known, all = pcall(cjson.decode, known) end
  return known and type(all) == 'table' and type(all.owner) == 'string' and all.owner or ''
end
local function record_event(kind, session, detail, by, about)
  redis.pcall('XADD', events, 'MAXLEN', '~', EVENTS, '*', 'at', whole(now), 'kind', kind,
    'session', session or '', 'owner', session and owner_of(session, about) or '',
    'by', by or '', 'detail', detail or '')
end
