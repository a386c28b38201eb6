-- recalls: runs behind looks. Decides which pool is to give a permit back, for whom, and when.

local LINE = 32 -- requests at the head of the queue that recalls are made for
local PROMISE = 1000 -- ms after it is due, and three moves, that a recalled permit is counted on
local FARTHEST = 600000 -- ms ahead that a recall can be due
local TOLD = 64 -- holders told at most that a request waits
local PROMISED = '^%d+ (%S+)( ?%l?)$' -- a promise: its number, whose permit, its kind
local TURN, OFFER = ' t', ' o' -- kinds: recalled in rotation; offered by a holder that needs none

-- Recalls. A pool is told how many permits were ever recalled from it, and how many recalls were
-- withdrawn: two numbers that only grow. So a push, the answer to an offer and a heartbeat can tell
-- it twice, and late, and it knows what is new. Any permit that it releases pays one.
local function recalls_of(pool)
  local both = redis.call('HMGET', recalls, '+' .. pool, '-' .. pool)
  return count_of(both[1]), count_of(both[2])
end
local function push_recalls(pool, delay)
  local recalled, withdrawn = recalls_of(pool)
  local words = { PUSH.recall, epoch, pool, whole(recalled), whole(withdrawn), whole(delay) }
  push(session_of(pool), table.concat(words, ' '))
end

local function owe(pool, n) -- recalls n of its permits; below 0, withdraws as many recalls
  local recalled, withdrawn = recalls_of(pool)
  local field = n > 0 and '+' .. pool or '-' .. pool
  redis.call('HSET', recalls, field, whole((n > 0 and recalled or withdrawn) + math.abs(n)))
  local debt = debt_of(pool) + n
  set_count(debts, pool, debt)
  place(pool, held_by(pool) - debt)
  if reserve then adjust_min(session_of(pool), -n) end
end
-- Recalls one permit for a pool that waits. Invariant: there are never more promises than permits
-- that those requests of the queue want whose pools owe nothing; see balance.
local function promise(pool, due, kind)
  local number = whole(redis.call('HINCRBY', meta, 'seq', 1))
  local expiry = due + PROMISE + 3 * read_meta('move', MOVE, SLOWEST) / 1000
  redis.call('ZADD', promises, whole(math.floor(expiry)), number .. ' ' .. pool .. kind)
  owe(pool, 1)
end
local function turn_length(capacity) -- ms between two turns of rotation; and what cycle returns
  local length, cost = cycle(capacity)
  return math.max(1, math.floor(length / math.max(1, capacity))), length, cost
end
-- How many permits can be on their way in rotation.
local function most_moves(capacity) return math.max(1, math.floor(capacity / HASTE)) end
-- Withdraws a promise that no request needs any more: its holder keeps the connection. A permit
-- that is on its way already comes as one given freely. A turn that was taken for it is free again.
local function withdraw_promise(promise)
  local pool, kind = string.match(promise, PROMISED)
  redis.call('ZREM', promises, promise)
  if not pool or debt_of(pool) == 0 then return end
  owe(pool, -1)
  local turn = kind == TURN and read_meta('turn', 0, now + FARTHEST) - turn_length(cap)
  if turn then set_meta('turn', math.max(0, turn)) end
  push_recalls(pool, 0)
end
-- Withdraws what was recalled for nobody: for a drain that has ended.
local function withdraw_unpromised()
  local promised = {}
  redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)
  for _, p in ipairs(redis.call('ZRANGE', promises, 0, -1)) do
    local pool = string.match(p, PROMISED) or ''
    promised[pool] = (promised[pool] or 0) + 1
  end
  for _, pool in ipairs(redis.call('HKEYS', debts)) do
    local n = debt_of(pool) - (promised[pool] or 0)
    if n > 0 then
      owe(pool, -n)
      push_recalls(pool, 0)
    end
  end
end
local function push_wanted() -- to the holders, so that they offer what lies idle
  for _, pool in ipairs(redis.call('ZREVRANGE', levels, 0, TOLD - 1)) do
    push(session_of(pool), PUSH.wanted .. ' ' .. pool)
  end
end

-- Returns the pool of the highest level that can give a permit, and may by its session's minimum.
local function largest_holder()
  local from, size = 0, reserve and 64 or 1
  repeat
    local page = redis.call('ZREVRANGE', levels, from, from + size - 1)
    from = from + size
    for _, pool in ipairs(page) do
      local may = (min_lacks(session_of(pool)) or -1) < 0
      if may and kept_by(pool) > 0 then return pool end
      if may then from = from - redis.call('ZREM', levels, pool) end -- no script has put it there
    end
  until #page < size
end
local function recall_all(session) -- of one session, or of all; whatever its minimum
  for _, pool in ipairs(redis.call('HKEYS', held_counts)) do
    local n = kept_by(pool)
    if n > 0 and session_of(pool) == (session or session_of(pool)) then
      owe(pool, n)
      push_recalls(pool, 0)
    end
  end
end
-- Recalls the permits held beyond the capacity: it was lowered, or a lost state was granted anew in
-- part; and in a drain all of them. Nothing is revoked. But in a busy fleet no pool gives back by
-- itself, so the pools of the highest levels are asked, and nobody is promised it. Returns whether
-- there is an excess.
local function drain(capacity)
  if drains() then recall_all() end
  local excess = redis.call('ZCARD', permits) - capacity
  if excess <= 0 then return false end
  for _, debt in ipairs(redis.call('HVALS', debts)) do excess = excess - count_of(debt) end
  for _ = 1, excess do
    local holder = largest_holder()
    if not holder then break end
    owe(holder, 1)
    push_recalls(holder, 0)
  end
  return true
end

-- Rotation. With more pools than permits, those that hold one give it, one after the other. A turn,
-- here, is one such move. Returns when the holder is to give its permit, ms. A move takes the
-- permit out of use for what it costs, and a herd of moves costs each a multiple. So turns are
-- spaced: with C permits there is one every cycle / C.
--   - A cycle, in which each permit moves once, is REPAY times the cost of a move: moves take some
--     5 % of the permits' time, whatever a connect costs. It is at least PACE for each permit:
--     Postgres makes at most 50 connections a second for rotation.
--   - The last of Q pools that hold none waits Q turns. Where that exceeds PATIENCE, cycles are
--     shorter, down to HASTE times the cost of a move.
--   - At most one permit in HASTE is on its way: recalled in rotation, or granted and not connected
--     yet. The next turn is given when a move has ended. So a connect that suddenly takes long
--     cannot put the permits out of use.
--   - A holder that has just been granted its permit connects: its turn comes at least four moves
--     later. A pool of weight w keeps its permit for w cycles.
local function next_turn(holder, capacity)
  local spacing, length, cost = turn_length(capacity)
  local farthest = now + FARTHEST
  local turn = math.max(now, read_meta('turn', 0, farthest))
  -- No further ahead than turns can be out. Idle permits are given before their turns, and would
  -- else put off the turns after them, further with each.
  turn = math.min(turn, now + most_moves(capacity) * spacing)
  set_meta('turn', math.min(turn + spacing, farthest))
  local since = -tonumber(redis.call('ZSCORE', levels, holder)) * AGE -- its level is 0: see place
  since = math.min(since, now + weight_of(holder) * length)
  return math.floor(math.min(math.max(turn, since + 4 * cost), farthest))
end

-- Recalls a permit for a waiter that would hold `has` without it. Returns whether the waiter has a
-- claim to it, its n-th. It has one to a permit of the pool of the highest level
--   - if after that the pool is not below the waiter's level (without weights: it holds two more);
--   - if the waiter holds none and the pool two or more; if the waiter's minimum lacks n or more;
--   - in rotation, if the waiter holds none, no pool more than one, and there is a turn for it.
local function claim(waiter, has, n, capacity, turns)
  local holder, pool = largest_holder(), waiter.pool
  if not holder or holder == pool or pool and debt_of(pool) > 0 then return false end
  local gives, due, kind = kept_by(holder), now, ''
  local below = has > 0 and (gives - 1) * weight_of(pool) < (has + 1) * weight_of(holder)
  if below and (min_lacks(waiter.session) or 0) < n then return false end
  if has == 0 and gives == 1 then
    if turns.left <= 0 then return false end
    turns.left = turns.left - 1
    due, kind = next_turn(holder, capacity), TURN
  end
  promise(holder, due, kind)
  push_recalls(holder, due - now)
  return true
end

-- Returns the requests at the head of the queue whose pools owe nothing, and how many permits each
-- wants. A pool that owes is not in need: it still holds what it owes, and waits only when it has
-- given that. (Counted as a pool that holds none, one lacking pool recalled the whole fleet's
-- permits.) A request of no pool counts as one that holds none: a busy pool gives nothing by
-- itself.
local function waiters_in_need()
  local line = redis.call('ZRANGE', queue, 0, LINE - 1, 'WITHSCORES')
  local ids, pools, waiters = {}, {}, {}
  for i = 1, #line, 2 do
    ids[#ids + 1] = string.match(line[i], '^%d+ (%S+)') or ''
    pools[#pools + 1] = pool_of(ids[#ids])
  end
  if #ids == 0 then return waiters end
  local owed = redis.call('HMGET', debts, unpack(pools))
  local held = redis.call('HMGET', held_counts, unpack(pools))
  for i, id in ipairs(ids) do
    local pooled = is_pooled(id)
    if id ~= '' and not (pooled and count_of(owed[i]) > 0) then
      waiters[#waiters + 1] = { session = session_of(id), pool = pooled and pools[i],
        has = pooled and count_of(held[i]) or 0, wants = math.floor(line[2 * i]) % WANTS + 1 }
    end
  end
  return waiters
end
local function sort_promises() -- by kind; and the highest level of a pool that gave or can give
  local turns, offers, rest, top, best = {}, {}, {}, -1, largest_holder()
  if best then top = (kept_by(best) - 1) / weight_of(best) end
  for _, promise in ipairs(redis.call('ZRANGE', promises, 0, -1)) do
    local pool, kind = string.match(promise, PROMISED)
    if pool then top = math.max(top, (held_by(pool) - 1) / weight_of(pool)) end
    local list = kind == TURN and turns or kind == OFFER and offers or rest
    list[#list + 1] = promise
  end
  return turns, offers, rest, top
end

-- Max-min fairness, in three steps:
--   1. Promises of rotation beyond the pools that hold none are withdrawn.
--   2. The permits wanted in the queue are looked at in the order of the levels that the waiters
--      would have. One that is free, or promised already, covers each; else the pool of the highest
--      level is asked, where there is a claim.
--   3. Promises that cover nothing are withdrawn.
-- Once levels are even this finds nothing: the first waiter without a claim speaks for all whose
-- level is not below its own.
local function balance(capacity)
  if drain(capacity) then return end
  redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)
  local turns, offers, rest, top = sort_promises()
  local waiters, without = waiters_in_need(), 0 -- without: permits wanted by those that hold none
  for _, waiter in ipairs(waiters) do
    if waiter.has == 0 then without = without + (waiter.pool and 1 or waiter.wants) end
  end
  while #turns > without do withdraw_promise(table.remove(turns)) end
  redis.call('ZREMRANGEBYSCORE', moves, '-inf', now)
  local moving = #turns + redis.call('ZCARD', moves)
  local left = { left = most_moves(capacity) - moving }
  -- A permit that is free, and kept for no minimum, is as good as promised: it is granted when the
  -- calm is over. An offer is, too: its holder does not use it, so any pool that waits may have it.
  local spare = capacity - redis.call('ZCARD', permits) - (reserve or 0)
  local free = math.max(0, spare) + #offers
  local promised, needed, hopeless = free + #turns + #rest, 0, nil
  for n = 1, WANTS do
    local found = false
    for _, waiter in ipairs(waiters) do
      local has = waiter.pool and waiter.has + n - 1 or 0
      local level = has > 0 and (has + 1) / weight_of(waiter.pool) or -1
      local lacks = (min_lacks(waiter.session) or 0) >= n
      if waiter.wants < n then -- it has what it wants
      elseif needed < promised and (needed < free or level <= top or lacks) then
        needed, found = needed + 1, true
      elseif hopeless and level >= hopeless and not lacks then
        waiter.wants = 0
      elseif claim(waiter, has, n, capacity, left) then
        needed, promised, found = needed + 1, promised + 1, true
      else
        waiter.wants = 0
        -- Where one that holds none is refused, no pool holds two, and there is no turn.
        if has == 0 then hopeless = -1 end
        if not hopeless and largest_holder() ~= waiter.pool then hopeless = level end
      end
    end
    if not found then break end
  end
  for _ = needed + 1, math.min(promised, needed + #rest + #turns + #offers) do
    withdraw_promise(table.remove(#rest > 0 and rest or #turns > 0 and turns or offers))
  end
end
-- Grants what is free, and recalls permits for those that wait then. `own`, if given, is the
-- session that runs this script, and asks for a look.
local function move_permits(capacity, own)
  if not may_grant() then return end
  grant_queue(capacity, '', {})
  local waiting = redis.call('ZCARD', queue)
  if own and waiting > 0 then ask_look(own) end
  if waiting + redis.call('ZCARD', promises) > 0 and not awaits_look() then balance(capacity) end
end
