-- Shared by every script of the semaphore, and put in front of each of them.
--
-- KEYS   1 permits     zset   permit UUID -> expiry of its lease, ms (the original PassBuddy's layout)
--        2 queue       zset   request -> rank; a request is "<ttl ms> <UUID>[ <UUID>...]"
--        3 meta        hash   see below
--        4 sessions    zset   session -> expiry, ms
--        5 info        hash   session -> JSON for operators
--        6 capacities  zset   session -> the capacity it declares
--        7 shares      zset   sharer that can give a permit back -> its level, see place
--        8 held        hash   sharer -> permits it holds
--        9 debts       hash   sharer -> how many of those it was asked to give back
--       10 promises    zset   "<number> <sharer>[ t]" -> expiry, ms; one for each permit a waiter can count on, see promise
--       11 reserves    hash   "min <session>" -> its guaranteed minimum; "free <session>" -> minimum less what it holds and does not owe
--       12 backends    hash   permit UUID -> "<pid> <start, us> <n>", the Postgres backend that it covers, if its holder says so: see cover
--       13 quarantine  hash   permit UUID -> "<pid> <start, us> <until, ms>", see isolate
--       14 recalls     hash   "+<sharer>" -> permits ever recalled from it; "-<sharer>" -> recalls withdrawn; see tell_owed
--       15 moves       zset   sharer that held none and opens a connection for what it was granted from the queue -> ms until which that is believed
--
-- A permit's UUID names its owner: characters 1-18 are the session, 1-23 the sharer (one connection pool of
-- that session, or PLAIN for a permit that no pool holds), and 16-17 the session's weight. So ownership needs no record of its own that could
-- drift. UUIDs of other clients (the original's are version 4) belong to no session here and are only counted.
--
-- meta   epoch     names this state; a session that knows another one knows that Redis forgot
--        seq       counts requests and promises
--        cap       the capacity in force        limit   an operator's
--        gate      ms until which nothing new is granted, because state was lost; see renew
--        early     ms from which that may end early; known: how many sessions there were; news: how many have joined since
--        count     permits that scripts have added and not removed: where that is more than there are, somebody else removed some
--        reserve   the sum of the positive values of "free": permits kept for their sessions, that nobody else is granted. It is there only
--                  while some session has a minimum, so that without any nothing is looked up
--        skew, last   see the clock
--        move      what it costs to move a permit, us: close to EOF, grant and connect, as sessions measure it, smoothed
--        turn      ms until which rotation is scheduled, see next_turn
--        calm, calm0, young, young0   when somebody last asked for its first permit, and when a session last joined, and since when that has been going on:
--                  ms, see Joining
--        fence     there while a permit may have a backend recorded: without it, the last two keys are not looked at
--
-- ARGV   1 Redis's time as its caller expects it, ms, 0 if it has never heard of it; the rest is the script's
--
-- The clock. Only Redis's own decides, read once per script (Redis 5 and later replicate a script's effects, not its text). But it can be
-- set, and an hour on would then end all leases at once, an hour back keep the dead. So `now` is the server's time less `skew`, and runs on
-- evenly: a time before the last heartbeat's (`last`) is a step back; one that is ahead both of that and of what the caller expects, by
-- his monotonic clock, is a step on. Should it be no step but a server or a fleet that slept: then the leases slept too, and last longer than
-- their holders trust them. That errs on the safe side.

local permits, queue, meta, sessions, info = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local capacities, shares, helds, debts, promises, reserves = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local backends, quarantine, recalls, moves = KEYS[12], KEYS[13], KEYS[14], KEYS[15]

local PLAIN = '8000'
local STEP = 400 -- ms by which a clock must be off to have been set: less than the margin of a lease of 5 s
local RANK = 1099511627776 -- 2^40: a request's rank counts before the order of arrival
local LEVELS = 16 -- ranks to one permit of a sharer of weight 1
local WANTS = 16 -- most permits of one request that are counted; the low part of its place in the queue
local LINE = 32 -- requests at the head of the queue that recalls are made for
local PROMISE = 1000 -- ms after it is due, and three moves, that a recalled permit is counted on
local FARTHEST = 600000 -- ms ahead that a recall can be due
local MOVE = 10000 -- us that a move costs, while nobody has measured one
local SLOWEST = 60000000 -- us; what is said to cost more is taken for this
local PACE = 20 -- ms between two moves in rotation, at least
local REPAY = 20 -- times its cost that a move lasts ...
local PATIENCE = 2000 -- ... but a pool should wait no longer than this, ms, ...
local HASTE = 6 -- ... as long as a move lasts this many times its cost, and no more than this part of the permits moves at once
local MOVING = 10000 -- ms that a pool which was granted its first permit is believed to be connecting
local CALM = 20 -- ms after somebody asked for its first permit in which nobody is granted more than its even part
local YOUNG = 30 -- ms after a session joined in which nobody is granted more than one permit
local JOINING = 150 -- ms for which that goes on at most, however many come
local TOLD = 64 -- holders told at most that somebody waits
local BOUND = 10000 -- ms that a permit in quarantine is counted at most ...
local BEHIND = 1000 -- ... and that the others are counted on after the first
local ASKED = 3600000 -- ms that somebody is asked to end its backend
local ENDS = 256 -- backends that a session is asked to end at once
local DAY = 86400000 -- ms; no lease is longer

local time = redis.call('TIME')
time = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', meta, 'epoch', 'cap', 'gate', 'reserve', 'count', 'skew', 'last', 'fence')
local epoch, gate, reserve = state[1], tonumber(state[3] or 0), tonumber(state[4] or '')

-- What no script would have written there was put there by somebody's hand. It goes, and what it stood for is lost: so is the state, then, like in
-- any other way. Here that costs a sum; a heartbeat looks closely.
local function sound(value, field)
  local n = tonumber(value or 0)
  if n and n * n < 2 ^ 106 and n % 1 == 0 and (n >= 0 or field == 'skew') then return value end
  redis.call('HDEL', meta, field, 'epoch')
  epoch = false
  return false
end
local count, skew, last = tonumber(state[5] or 0), tonumber(state[6] or 0), tonumber(state[7] or 0)
local cap, kept = tonumber(state[2] or 0), reserve or state[4] == false and 0
if not (gate and count and skew and last and cap and kept
    and gate * gate + count * count + skew * skew + last * last + cap * cap + kept * kept < 2 ^ 106) then
  for i, field in ipairs({ 'cap', 'gate', 'reserve', 'count', 'skew', 'last' }) do state[i + 1] = sound(state[i + 1], field) end
  gate, reserve, count = tonumber(state[3] or 0), tonumber(state[4] or ''), tonumber(state[5] or 0)
  skew, last = tonumber(state[6] or 0), tonumber(state[7] or 0)
end

local now, expected = time - skew, tonumber(ARGV[1])
if last - math.max(now, expected) > DAY then last = tonumber(sound('no such time', 'last') or 0) end
if now < last - STEP or last > 0 and expected > 0 and now - math.max(last, expected) > STEP then
  now = math.max(last, expected - STEP)
  redis.call('HSET', meta, 'skew', string.format('%.0f', time - now))
end

local function fences() return redis.call('HLEN', backends) + redis.call('HLEN', quarantine) > 0 end
local fence = state[8] or not epoch and fences()

-- The set is gone, but permits are held: that is state lost like any other. Single ones that are missing were revoked by somebody's hand.
if epoch then
  local there = redis.call('ZCARD', permits)
  if there == 0 and count > 1 then
    redis.call('HDEL', meta, 'epoch')
    epoch = false
  elseif there < count then
    redis.call('HSET', meta, 'count', there)
  end
end
local change = 0
local function tally()
  if change ~= 0 then redis.call('HINCRBY', meta, 'count', change) end
end

-- 2^53 ms holds every time there is; %.0f because Lua would print 1.7e+12.
local function whole(n) return string.format('%.0f', n) end
local function session_of(id) return string.sub(id, 1, 18) end
local function sharer_of(id) return string.sub(id, 1, 23) end
-- Other clients' UUIDs are of another version. They were never counted in, so they must not be counted out when they expire.
local function is_ours(id) return string.sub(id, 15, 15) == '8' end
local function is_shared(id) return string.sub(id, 20, 23) ~= PLAIN end
local function weight_of(sharer) return math.max(1, tonumber(string.sub(sharer, 16, 17), 16) or 1) end

local sharded = redis.REDIS_VERSION_NUM and redis.REDIS_VERSION_NUM >= 0x00070000
local function push(session, message)
  -- pcall: a user whom the ACL denies the channel must not have the script end half-way. A push lost costs time only.
  redis.pcall(sharded and 'SPUBLISH' or 'PUBLISH', '{' .. permits .. '}:push:' .. session, message)
end

local function is_live(session)
  local expiry = redis.call('ZSCORE', sessions, session)
  return expiry and tonumber(expiry) > now
end

-- Ends the gate early: all that any session knew of are back, and those that nobody knew of yet have had time for a heartbeat.
local function open_gate()
  if gate <= now then return true end
  local m = redis.call('HMGET', meta, 'early', 'known', 'news')
  local known = tonumber(m[2] or 0)
  if now < tonumber(m[1] or gate) or known == 0 or redis.call('ZCARD', sessions) - tonumber(m[3] or 0) < known then return false end
  gate = now
  redis.call('HSET', meta, 'gate', whole(gate))
  return true
end

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

-- Quarantine. A lease that expires says nothing of its connection: a process that is stopped closes none. So a permit that has a backend
-- recorded is not dropped then. It goes on counting as held, but it is nobody's: its holder cannot renew it, and it counts
-- for no sharer and no minimum.
--
--           expires                     its backend is gone, says a session: drop
--   held ------------> in quarantine ----------------------------------------------> free
--                            |                                                         ^
--                            +---------------------------------------------------------+
--                              BOUND has passed: free, but its backend is still asked for
--
-- Should nobody alive have a connection to end it by, the place that is free after BOUND gives somebody one. That is one place: by the time
-- the others would be free (BEHIND) he has ended their backends.
local function isolate(id, backend)
  redis.call('HDEL', backends, id)
  redis.call('ZADD', permits, whole(now + BOUND + (redis.call('HLEN', quarantine) > 0 and BEHIND or 0)), id)
  redis.call('HSET', quarantine, id, backend .. ' ' .. whole(now + ASKED))
  disown(id)
end

local function is_quarantined(id) return fence and redis.call('HEXISTS', quarantine, id) == 1 end

-- Records the backend that a permit covers: "<pid> <start> <n>", the n-th that was opened under it. `known` is what is recorded. Marks and
-- heartbeats travel on several connections and can overtake each other: what is known of a later backend stays.
local function cover(id, backend, known)
  local function nth(text) return tonumber(string.match(text, '%d+$') or '0') end
  if not known or nth(known) < nth(backend) then redis.call('HSET', backends, id, backend) end
end

-- Walks over what is in quarantine, or was and is still asked for: as many as somebody can be asked to end at once.
local function quarantined()
  local ids, i = redis.call('HKEYS', quarantine), 0
  table.sort(ids)
  return function()
    while ids[i + 1] and i < ENDS do
      i = i + 1
      local backend = redis.call('HGET', quarantine, ids[i])
      if string.match(backend, '^%d+ %d+ %d+$') then return ids[i], backend end
      redis.call('HDEL', quarantine, ids[i]) -- put there by somebody's hand
    end
  end
end

-- Asks a session to end the backends in quarantine. A push lost costs time only: see renew.
local function ask_end(session)
  local words = { 'f' }
  for id, backend in quarantined() do
    words[#words + 1] = id .. ' ' .. string.match(backend, '^%d+ %d+')
  end
  if #words > 1 then push(session, table.concat(words, ' ')) end
end

-- Who can be asked: a session that is alive, and has a connection to do it by, for at capacity it may not open one. `own`, which runs
-- this script, is alive for sure; else they take turns.
local function able_to_end(own)
  local able, seen = {}, {}
  for _, id in ipairs(redis.call('HKEYS', backends)) do
    local session = session_of(id)
    if session == own then return own end
    if not seen[session] then
      seen[session] = true
      if is_live(session) then able[#able + 1] = session end
    end
  end
  if #able == 0 then return nil end
  table.sort(able)
  return able[redis.call('HINCRBY', meta, 'seq', 1) % #able + 1]
end

-- Removes permits whose lease has expired, or puts them in quarantine.
local function purge(own)
  local isolated = false
  local dead = redis.call('ZRANGEBYSCORE', permits, '-inf', now, 'LIMIT', 0, 100)
  while #dead > 0 do
    for _, id in ipairs(dead) do
      local backend = fence and redis.call('HGET', backends, id)
      backend = backend and string.match(backend, '^%d+ %d+')
      if backend then
        isolate(id, backend)
        isolated = true
      elseif is_quarantined(id) then
        change = change - redis.call('ZREM', permits, id) -- BOUND has passed
      else
        drop(id)
      end
    end
    dead = redis.call('ZRANGEBYSCORE', permits, '-inf', now, 'LIMIT', 0, 100)
  end
  local asked = isolated and able_to_end(own)
  if asked then ask_end(asked) end
end

-- How many of n permits a session can be granted where `free` are not held: what others' minima lack is kept for those.
local function grantable(n, free, session)
  n = math.min(n, free)
  if reserve and n > 0 then n = math.min(n, math.max(0, lacking(session) or 0) + math.max(0, free - reserve)) end
  return n
end

-- Splits a request into its lease length and its permit UUIDs.
local function parse(request)
  local ttl, rest = string.match(request, '^(%d+) (.+)$')
  local ids = {}
  for id in string.gmatch(rest or '', '%S+') do ids[#ids + 1] = id end
  return tonumber(ttl), ids
end

-- Takes what a session has measured a move to cost, us; 0 if it has measured none since it last said so. The move has ended, then.
local function learn_move(session, cost)
  if cost <= 0 then return end
  for _, sharer in ipairs(redis.call('ZRANGE', moves, 0, -1)) do
    if session_of(sharer) == session then redis.call('ZREM', moves, sharer) end
  end
  local known = pace_of('move', cost, SLOWEST)
  redis.call('HSET', meta, 'move', whole(math.floor(known + (math.min(cost, SLOWEST) - known) / 8)))
end

-- Joining. When a fleet starts, the first sharer to ask could be granted all there is. It would have to give most of it back to those that ask a
-- moment later, each time for a connect. So
--   - a sharer's first grant is at most its even part, by the weights of the live sessions;
--   - what a sharer asks for beyond that is granted CALM after the last one has asked for its first;
--   - within YOUNG of a session's joining nobody knows what is even, and each is granted one.
-- A row of such events goes on for JOINING at most: pods that come one after the other must not stop the fleet. Two fields of meta keep a row,
-- one for its last event and one for when it began.
local function note(row, span)
  if now - pace_of(row, 0, now) > span then redis.call('HSET', meta, row .. '0', whole(now)) end
  redis.call('HSET', meta, row, whole(now))
end
local function goes_on_until(row, span) return math.min(pace_of(row, 0, now) + span, pace_of(row .. '0', 0, now) + JOINING) end
local function young_until() return goes_on_until('young', YOUNG) end
local function calm_until() return math.max(goes_on_until('calm', CALM), young_until()) end

local function even_part(sharer, capacity)
  local sum = 0
  for _, session in ipairs(redis.call('ZRANGE', sessions, 0, -1)) do sum = sum + weight_of(session) end
  return math.max(1, math.floor(capacity * weight_of(sharer) / math.max(1, sum)))
end

-- How many of n free permits a sharer is granted now. Its session's minimum is nobody else's, so it has that in any case.
local function at_once(sharer, n, capacity, joins)
  if joins then
    note('calm', CALM)
  elseif calm_until() <= now then
    return n
  end
  local held = held_by(sharer)
  if n == 1 and held == 0 then return n end
  local part = young_until() > now and 1 or even_part(sharer, capacity)
  return math.min(n, math.max(0, part - held, lacking(session_of(sharer)) or 0))
end

-- Grants free capacity to the head of the queue, and stops at the first request that does not fit, or is to wait for the end of the
-- calm: those behind it do not pass. Requests of dead sessions, and those that can never fit, leave.
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
    elseif grantable(#ids, free, session) < #ids then
      return free
    elseif is_shared(ids[1]) and calm_until() > now and at_once(sharer_of(ids[1]), 1, capacity) < 1 then
      return free
    else
      redis.call('ZREM', queue, head)
      for _, id in ipairs(ids) do
        if is_shared(id) and held_by(sharer_of(id)) == 0 then redis.call('ZADD', moves, whole(now + MOVING), sharer_of(id)) end
        grant(id, ttl)
        if session == own then granted[#granted + 1] = id end
      end
      if session ~= own then push(session, 'g ' .. epoch .. ' ' .. whole(now) .. ' ' .. table.concat(ids, ' ')) end
      free = free - #ids
    end
  end
  return free
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

-- Recalls one permit for somebody who waits. Invariant: there are never more promises than permits that the requests of the queue want
-- whose pools owe nothing; see balance.
local function promise(sharer, due, rotates)
  local number = whole(redis.call('HINCRBY', meta, 'seq', 1))
  local expiry = due + PROMISE + 3 * pace_of('move', MOVE, SLOWEST) / 1000
  redis.call('ZADD', promises, whole(math.floor(expiry)), number .. ' ' .. sharer .. (rotates and ' t' or ''))
  indebt(sharer, 1)
end

-- Takes a promise back, because nobody needs it any more: its holder keeps the connection. If the permit is on its way already,
-- it comes as one that is given freely. A turn that was taken for it is free again.
local function withdraw_promise(promise)
  local sharer, rotates = string.match(promise, '^%d+ (%S+)( ?t?)$')
  redis.call('ZREM', promises, promise)
  if not sharer or debt_of(sharer) == 0 then return end
  indebt(sharer, -1)
  if rotates ~= '' then
    local turn = pace_of('turn', 0, now + FARTHEST)
    local length = cycle(tonumber(state[2] or 0))
    redis.call('HSET', meta, 'turn', whole(math.max(0, turn - math.max(1, math.floor(length / math.max(1, tonumber(state[2] or 0)))))))
  end
  tell_owed(sharer, 0)
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
  promise(holder, due, rotates)
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
  local made, waiters, turns, rest, top = redis.call('ZRANGE', promises, 0, -1), in_need(), {}, {}, -1
  local best = richest()
  if best then top = (share_of(best) - 1) / weight_of(best) end
  for _, promise in ipairs(made) do
    local sharer, rotates = string.match(promise, '^%d+ (%S+)( ?t?)$')
    if sharer then top = math.max(top, (held_by(sharer) - 1) / weight_of(sharer)) end
    local list = rotates == ' t' and turns or rest
    list[#list + 1] = promise
  end
  local without = 0 -- permits wanted by those that hold none
  for _, waiter in ipairs(waiters) do
    if waiter.has == 0 then without = without + (waiter.sharer and 1 or waiter.wants) end
  end
  while #turns > without do withdraw_promise(table.remove(turns)) end
  redis.call('ZREMRANGEBYSCORE', moves, '-inf', now)
  local left = { left = math.max(1, math.floor(capacity / HASTE)) - #turns - redis.call('ZCARD', moves) }

  -- What is free, and not kept for anybody's minimum, is as good as promised: it is granted as soon as the calm is over.
  local free = math.max(0, capacity - redis.call('ZCARD', permits) - (reserve or 0))
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
  for _ = needed + 1, math.min(promised, needed + #rest + #turns) do withdraw_promise(table.remove(#rest > 0 and rest or turns)) end
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
