-- recalls: who is asked to give a permit back, for whom, and when. After queue, before every script.

local LINE = 32 -- requests at the head of the queue that recalls are made for
local PROMISE = 1000 -- ms after it is due, and three moves, that a recalled permit is counted on
local FARTHEST = 600000 -- ms ahead that a recall can be due
local PROMISED = '^%d+ (%S+)( ?%l?)$' -- what a promise consists of: its number, whose permit, its kind
local TOLD = 64 -- holders told at most that somebody waits

-- Takes what a session has measured a move to cost, us; 0 if it has measured none since it last said so. The move has ended, then.
local function learn_move(session, cost)
  if cost <= 0 then return end
  for _, sharer in ipairs(redis.call('ZRANGE', moves, 0, -1)) do
    if session_of(sharer) == session then redis.call('ZREM', moves, sharer) end
  end
  local known = pace_of('move', cost, SLOWEST)
  redis.call('HSET', meta, 'move', whole(math.floor(known + (math.min(cost, SLOWEST) - known) / 8)))
end

-- Recalls. A sharer is told how many permits it was ever asked to give back, and how many of those recalls were withdrawn since: two
-- numbers that only grow. So it can be told twice, late, by a push, by the answer to an offer and by a heartbeat, and knows each time what is new.
-- Whatever permit it releases pays one, here as there.
local function tally_of(sharer)
  local both = redis.call('HMGET', recalls, '+' .. sharer, '-' .. sharer)
  return count_of(both[1]), count_of(both[2])
end

local function tell_owed(sharer, delay)
  local recalled, withdrawn = tally_of(sharer)
  push(session_of(sharer), 'b ' .. epoch .. ' ' .. sharer .. ' ' .. whole(recalled) .. ' ' .. whole(withdrawn) .. ' ' .. whole(delay))
end

-- Recalls one permit of a sharer (n is 1), or withdraws a recall (-1): its share is less, or more, from now on.
local function indebt(sharer, n)
  local recalled, withdrawn = tally_of(sharer)
  if n > 0 then
    redis.call('HSET', recalls, '+' .. sharer, whole(recalled + 1))
  else
    redis.call('HSET', recalls, '-' .. sharer, whole(withdrawn + 1))
  end
  local debt = debt_of(sharer) + n
  if debt > 0 then redis.call('HSET', debts, sharer, debt) else redis.call('HDEL', debts, sharer) end
  place(sharer, held_by(sharer) - debt)
  if reserve then reckon(session_of(sharer), -n) end
end

-- Recalls one permit for a pool that waits. Invariant: there are never more promises than permits that the requests of the queue want
-- whose pools owe nothing; see balance. A promise is of a kind:
--   ''    claimed from the sharer of the highest level
--   ' t'  claimed in rotation: a turn
--   ' o'  offered by its holder, which does not use it
local function promise(sharer, due, kind)
  local number = whole(redis.call('HINCRBY', meta, 'seq', 1))
  local expiry = due + PROMISE + 3 * pace_of('move', MOVE, SLOWEST) / 1000
  redis.call('ZADD', promises, whole(math.floor(expiry)), number .. ' ' .. sharer .. kind)
  indebt(sharer, 1)
end

-- Takes a promise back, because nobody needs it any more: its holder keeps the connection. If the permit is on its way already,
-- it comes as one that is given freely. A turn that was taken for it is free again.
local function withdraw_promise(promise)
  local sharer, kind = string.match(promise, PROMISED)
  redis.call('ZREM', promises, promise)
  if not sharer or debt_of(sharer) == 0 then return end
  indebt(sharer, -1)
  if kind == ' t' then
    local turn = pace_of('turn', 0, now + FARTHEST)
    local length = cycle(tonumber(state[2] or 0))
    redis.call('HSET', meta, 'turn', whole(math.max(0, turn - math.max(1, math.floor(length / math.max(1, tonumber(state[2] or 0)))))))
  end
  tell_owed(sharer, 0)
end

-- Tells the holders that somebody waits, so that they offer what lies idle.
local function tell_holders()
  for _, sharer in ipairs(redis.call('ZREVRANGE', shares, 0, TOLD - 1)) do
    push(session_of(sharer), 'w ' .. sharer)
  end
end

-- The first by level of those that can give a permit: the sessions whose minimum it would break cannot.
local function first_by_level()
  if not reserve then return redis.call('ZREVRANGE', shares, 0, 0)[1] end
  for from = 0, redis.call('ZCARD', shares), 64 do
    for _, sharer in ipairs(redis.call('ZREVRANGE', shares, from, from + 63)) do
      if (lacking(session_of(sharer)) or -1) < 0 then return sharer end
    end
  end
end

-- The sharer of the highest level that can give a permit, or nil.
local function richest()
  while true do
    local holder = first_by_level()
    if not holder or share_of(holder) > 0 then return holder end
    redis.call('ZREM', shares, holder) -- put there by somebody's hand
  end
end

-- More are held than the capacity: it was lowered, or a state that was lost had been granted anew in part. Nothing is revoked; but in a busy
-- fleet nobody gives back by himself, so the sharers of the highest levels are asked for what is too much. Nobody is promised it. True if there is too much.
local function drain(capacity)
  local excess = redis.call('ZCARD', permits) - capacity
  if excess <= 0 then return false end
  for _, debt in ipairs(redis.call('HVALS', debts)) do excess = excess - count_of(debt) end
  for _ = 1, excess do
    local holder = richest()
    if not holder then break end
    indebt(holder, 1)
    tell_owed(holder, 0)
  end
  return true
end

-- Rotation: more pools than permits, so those that hold one take turns. Returns when the holder is to give its permit.
--
-- A move takes the permit out of use for what it costs, and a herd of moves costs each a multiple. So turns are spaced: each permit moves once
-- in a cycle, and with C permits there is a turn every cycle / C.
--   - A cycle is REPAY times the cost of a move: moves take some 5 % of the permits' time, whatever a connect costs.
--   - It is at least PACE for each permit: Postgres makes at most 50 connections a second for rotation.
--   - The last of Q pools that hold none waits Q turns. Where that exceeds PATIENCE, cycles are shorter, down to HASTE times the cost of a move.
--   - At most one permit in HASTE is on its way at any time: recalled in rotation, or granted and not connected yet. The next turn is given when
--     a move has ended. So a connect that suddenly takes long cannot put the permits out of use.
--   - A holder that has just been granted its permit is connecting: its turn comes no earlier than four moves later.
--   - A pool of weight w keeps its permit for w cycles.
local function next_turn(holder, capacity)
  local length, cost = cycle(capacity)
  local turn = math.max(now, pace_of('turn', 0, now + FARTHEST))
  redis.call('HSET', meta, 'turn', whole(math.min(turn + math.max(1, math.floor(length / math.max(1, capacity))), now + FARTHEST)))
  local since = -tonumber(redis.call('ZSCORE', shares, holder)) * 8796093022208 -- its level is 0: see place
  since = math.min(since, now + weight_of(holder) * length)
  return math.floor(math.min(math.max(turn, since + 4 * cost), now + FARTHEST))
end

-- Recalls a permit for a waiter that would hold `has` without it; true if the waiter has a claim to it, its n-th. It has one to a permit of
-- the sharer of the highest level,
--   if after that the sharer is not below the waiter's level (without weights: if it holds at least two more), or
--   if the waiter holds none and the sharer two or more, or
--   if the waiter's minimum lacks n or more, or
--   in rotation, if the waiter holds none and everybody at most one, and there is a turn for it.
local function claim(waiter, has, n, capacity, turns)
  local holder = richest()
  if not holder or holder == waiter.sharer or waiter.sharer and debt_of(waiter.sharer) > 0 then return false end
  local gives, due = share_of(holder), now
  local rotates = has == 0 and gives == 1
  if has > 0 and (gives - 1) * weight_of(waiter.sharer) < (has + 1) * weight_of(holder) and (lacking(waiter.session) or 0) < n then return false end
  if rotates then
    if turns.left <= 0 then return false end
    turns.left = turns.left - 1
    due = next_turn(holder, capacity)
  end
  promise(holder, due, rotates and ' t' or '')
  tell_owed(holder, due - now)
  return true
end

-- The requests at the head of the queue whose pools owe nothing, and how many permits each wants. A pool that owes is not in need: it still
-- holds what it owes, and waits only when it has given it. (To count it as one that holds none made one lacking pool recall the permits
-- of the whole fleet.) A request of no sharer counts as one that holds none: a busy pool gives nothing back by itself.
local function in_need()
  local line, ids, sharers = redis.call('ZRANGE', queue, 0, LINE - 1, 'WITHSCORES'), {}, {}
  for i = 1, #line, 2 do
    ids[#ids + 1] = string.match(line[i], '^%d+ (%S+)') or ''
    sharers[#sharers + 1] = sharer_of(ids[#ids])
  end
  if #ids == 0 then return {} end
  local owe, hold, waiters = redis.call('HMGET', debts, unpack(sharers)), redis.call('HMGET', helds, unpack(sharers)), {}
  for i, id in ipairs(ids) do
    local shared = is_shared(id)
    if id ~= '' and not (shared and count_of(owe[i]) > 0) then
      waiters[#waiters + 1] = {
        session = session_of(id), sharer = shared and sharers[i], has = shared and count_of(hold[i]) or 0,
        wants = math.floor(line[2 * i]) % WANTS + 1,
      }
    end
  end
  return waiters
end

-- Max-min fairness, in three steps:
--   1. Promises of rotation beyond the pools that hold none are withdrawn.
--   2. The permits wanted in the queue are looked at in the order of the levels that the waiters would have. One that is free, or promised
--      already, covers each. For any other the sharer of the highest level is asked, where there is a claim.
--   3. Promises that cover nothing are withdrawn.
-- Once shares are even this finds nothing: the first waiter without a claim speaks for all whose level is not below its own.
local function balance(capacity)
  if drain(capacity) then return end
  redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)
  local offered = {}
  local made, waiters, turns, rest, top = redis.call('ZRANGE', promises, 0, -1), in_need(), {}, {}, -1
  local best = richest()
  if best then top = (share_of(best) - 1) / weight_of(best) end
  for _, promise in ipairs(made) do
    local sharer, kind = string.match(promise, PROMISED)
    if sharer then top = math.max(top, (held_by(sharer) - 1) / weight_of(sharer)) end
    local list = kind == ' t' and turns or kind == ' o' and offered or rest
    list[#list + 1] = promise
  end
  local without = 0 -- permits wanted by those that hold none
  for _, waiter in ipairs(waiters) do
    if waiter.has == 0 then without = without + (waiter.sharer and 1 or waiter.wants) end
  end
  while #turns > without do withdraw_promise(table.remove(turns)) end
  redis.call('ZREMRANGEBYSCORE', moves, '-inf', now)
  local left = { left = math.max(1, math.floor(capacity / HASTE)) - #turns - redis.call('ZCARD', moves) }

  -- What is free, and not kept for anybody's minimum, is as good as promised: it is granted as soon as the calm is over. So is what was
  -- offered: its holder does not use it, so any pool that waits may have it, however many it holds.
  local free = math.max(0, capacity - redis.call('ZCARD', permits) - (reserve or 0)) + #offered
  local promised, needed, hopeless = free + #turns + #rest, 0, nil
  for n = 1, WANTS do
    local found = false
    for _, waiter in ipairs(waiters) do
      local has = waiter.sharer and waiter.has + n - 1 or 0
      local level = has > 0 and (has + 1) / weight_of(waiter.sharer) or -1
      local lacks = (lacking(waiter.session) or 0) >= n
      if waiter.wants < n then
        -- It has what it wants.
      elseif needed < promised and (needed < free or level <= top or lacks) then
        needed, found = needed + 1, true
      elseif hopeless and level >= hopeless and not lacks then
        waiter.wants = 0
      elseif claim(waiter, has, n, capacity, left) then
        needed, promised, found = needed + 1, promised + 1, true
      else
        waiter.wants = 0
        -- Where one that holds none is refused, nobody holds two, and there is no turn.
        if has == 0 then hopeless = -1 elseif not hopeless and richest() ~= waiter.sharer then hopeless = level end
      end
    end
    if not found then break end
  end
  for _ = needed + 1, math.min(promised, needed + #rest + #turns + #offered) do
    withdraw_promise(table.remove(#rest > 0 and rest or #turns > 0 and turns or offered))
  end
end
