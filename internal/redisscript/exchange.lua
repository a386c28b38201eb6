-- exchange: everything a session wants at once. Releases, then grants to the queue, then new requests, then offers.
--
-- ARGV   2 session    3 its epoch    4 lease, ms
--        5 number of plain permits to release, 6 to wait for, 7 to try for, each alone
--        8 the most requests that may wait, 0 for any number
--        then the UUIDs of the plain permits
--        then, if there is anything else, number of requests to drop, to ask, units offered, the sharer that offers, and
--        what the session has measured a move to cost, us, 0 if nothing new
--        then the requests to drop, "<ttl> <UUID>...": released if held, out of the queue if waiting
--        then the requests to ask, each a kind and the request:
--          't' all or none, now        'w' all or none, waiting in the queue
--          'e' one that is held: extends its lease
--          's' one sharer's wish for as many of the UUIDs as are free and it may have at once; if none is, it waits for the first one
--          'j' the same, of a sharer that was granted nothing yet: see Joining in queue
-- Returns now, ms, or 0 if it was not looked up: all was released, all was granted, and nobody waits
--      or {'ok', now, wake, waiting, {recalled, withdrawn}, {granted UUIDs},
--         {first UUIDs of requests refused}, {of those the queue has no place for}, free, full,
--         {of those Redis has no memory for}}
--          free      permits that are held by nobody, and held back if anyone waits: for a minimum, or while others join
--          full      1 if Redis has reached maxmemory, and nothing new was granted or queued
--          wake      when to ask again if something of this session is left in the queue, ms, 0 if unknown
--          waiting   requests left in the queue, of anyone
--          recalled, withdrawn   of the sharer that offers, if it is to give some of what it offered; else nothing. See tell_owed in recalls
--          refused   't' that found no room, 'e' that is not held, more than the whole capacity, or what is all or none and held in part
--      or {'gone'} if the session is unknown here, or the state is of another epoch: it must renew first.
-- Clock: Redis's.
-- Twice: the UUIDs are the client's. A request that is held, or waits, is found and left as it is (its lease is extended); what was
-- dropped is not there. An offer is answered anew, which promises at most what is still needed.

local own, ttl, most_waiting = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[8])
local n_drops, n_asks, offered, offerer = tonumber(ARGV[REST] or 0), tonumber(ARGV[REST + 1] or 0), tonumber(ARGV[REST + 2] or 0), ARGV[REST + 3]
local at = REST + 5

if epoch ~= ARGV[3] or n_waits + n_tries + n_asks > 0 and not is_live(own) then return { 'gone' } end
local capacity, shut = tonumber(state[2] or 0), not open_gate()
local granted, refused, crowded, no_memory = {}, {}, {}, {}
learn_move(own, tonumber(ARGV[REST + 4] or 0))

for i = 1, n_released do drop(ARGV[FIRST + i - 1]) end
for _ = 1, n_drops do
  local request = ARGV[at]
  at = at + 1
  local _, ids = parse(request)
  local held = false
  for _, id in ipairs(ids) do held = drop(id) or held end
  if not held then redis.call('ZREM', queue, request) end
end

-- Permits whose lease has expired are counted until somebody wants for room: that errs on the safe side, and
-- saves the common case a look.
local waiting, free = redis.call('ZCARD', queue), nil
local purged = false
local function room(n)
  free = free or capacity - redis.call('ZCARD', permits)
  if not purged and grantable(n, free, own) < n then
    purged = true
    purge(own)
    free = capacity - redis.call('ZCARD', permits)
  end
  return grantable(n, free, own)
end

if waiting > 0 and not shut then
  purged = true
  purge(own) -- for who is first in line may have room then, whatever our own requests find
  free = pump(capacity, own, granted)
  waiting = redis.call('ZCARD', queue)
end

-- Requests of sharers are served by level, and all that hold nothing by arrival, like those of plain permits. What a minimum lacks goes first.
local function rank_of(id)
  if (lacking(session_of(id)) or 0) > 0 then return 0 end
  local held = is_shared(id) and held_by(sharer_of(id)) or 0
  if held <= 0 then return LEVELS end
  return math.min(8191, LEVELS + math.max(1, math.floor(LEVELS * held / weight_of(id))))
end

-- Puts a request for n permits into the queue, behind all others of its rank; one that waits already keeps its turn within its (new) rank,
-- which can make it the head. But a pool that has just given its last permit has waited for none until now.
local asked = false
local function enqueue(request, id, n)
  local old = redis.call('ZSCORE', queue, request)
  if not old and most_waiting > 0 and waiting >= most_waiting and not is_shared(id) then
    crowded[#crowded + 1] = id
    return
  end
  local rank = rank_of(id)
  local seq = old and tonumber(old) ^ 2 < 2 ^ 106 and math.floor(tonumber(old) % RANK / WANTS)
  if not seq or rank == LEVELS and tonumber(old) >= (LEVELS + 1) * RANK then seq = redis.call('HINCRBY', meta, 'seq', 1) end
  local score = rank * RANK + seq * WANTS + math.min(n, WANTS) - 1
  redis.call('ZADD', queue, whole(score), request)
  asked = asked or score ~= tonumber(old or -1)
  if not old then waiting = waiting + 1 end
end

local before = waiting
local function ask(kind, length, ids, request)
  local held, joins = 0, kind == 'j'
  if joins then kind = 's' end
  for _, id in ipairs(ids) do
    if is_quarantined(id) then -- a duplicate that strayed for a lease: it must not shorten the quarantine
      refused[#refused + 1] = ids[1]
      return
    end
    if redis.call('ZSCORE', permits, id) then held = held + 1 end
  end
  if held == #ids or held > 0 and kind == 's' then -- a duplicate, or an extension
    for _, id in ipairs(ids) do
      if held == #ids or redis.call('ZSCORE', permits, id) then
        redis.call('ZADD', permits, whole(now + length), id)
        granted[#granted + 1] = id
      end
    end
    return
  end
  if held > 0 then
    -- Some of those that are all or none were revoked by hand, and who asks must drop the others. Or some are released by now, and this is a
    -- duplicate that strayed: the others are in use.
    refused[#refused + 1] = ids[1]
    return
  end
  if full and kind ~= 'e' then
    -- A request in the queue keeps its place, and is granted when something is given back.
    local place = kind == 's' and length .. ' ' .. ids[1] or request
    if not redis.call('ZSCORE', queue, place) then no_memory[#no_memory + 1] = ids[1] end
    return
  end
  -- What is kept for its minimum, a session need not queue for.
  local first = waiting == 0 or (lacking(own) or 0) >= #ids
  local some = first and not shut and kind ~= 'e' and room(#ids) or 0
  if kind == 's' and some > 0 then some = at_once(sharer_of(ids[1]), some, capacity, joins) end
  if some == #ids or kind == 's' and some > 0 then
    if waiting > 0 then waiting = waiting - redis.call('ZREM', queue, kind == 's' and length .. ' ' .. ids[1] or request) end
    for i = 1, some do
      grant(ids[i], length)
      granted[#granted + 1] = ids[i]
    end
    free = free - some
  elseif kind == 's' then
    enqueue(length .. ' ' .. ids[1], ids[1], #ids)
  elseif kind == 'w' and #ids <= capacity then
    enqueue(request, ids[1], #ids)
  else
    refused[#refused + 1] = ids[1]
  end
end

for i = 1, n_waits + n_tries do
  local id = ARGV[FIRST + n_released + i - 1]
  ask(i <= n_waits and 'w' or 't', ttl, { id }, ARGV[4] .. ' ' .. id)
end
for _ = 1, n_asks do
  local kind, request = ARGV[at], ARGV[at + 1]
  at = at + 2
  local length, ids = parse(request)
  ask(kind, length, ids, request)
end
if asked and not shut then
  -- Free capacity can be there still: a big request at the head may now be behind one of lower rank.
  if free > 0 then
    pump(capacity, own, granted)
    waiting = redis.call('ZCARD', queue)
  end
end
local look, new = 0, false
if waiting > 0 and not shut then look, new = ask_look(own) end
local moves_on = not shut and not awaits_look()
-- Holders are told when the queue begins; what they get from then on tells them, too. Where a look
-- came first, they are told after it.
if moves_on and waiting > 0 and (asked and before == 0 or new) then tell_holders() end

-- Permits that are wanted in the queue, by others than who offers, and not promised yet.
local function unpromised()
  local wanted = -redis.call('ZCARD', promises)
  for _, waiter in ipairs(in_need()) do
    if waiter.sharer ~= offerer then wanted = wanted + waiter.wants end
  end
  return math.max(0, wanted)
end

local answers = false
if offered > 0 and waiting > 0 and moves_on then
  redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)
  local promised = math.min(offered, unpromised(), share_of(offerer))
  local spare = lacking(own)
  if spare then promised = math.min(promised, math.max(0, -spare)) end
  for _ = 1, promised do promise(offerer, now, ' o') end
  answers = promised > 0
end
if moves_on and (waiting > 0 or redis.call('ZCARD', promises) > 0) then balance(capacity) end

local wake = 0
if waiting > 0 then
  if shut then
    local early = tonumber(redis.call('HGET', meta, 'early') or 0)
    wake = early > now and early or gate
  else
    wake = tonumber(redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')[2] or 0)
    if calm_until() > now and redis.call('ZCARD', permits) < capacity then wake = calm_until() end
    if look > 0 then wake = wake > 0 and math.min(wake, look) or look end
  end
end
tally()
return { 'ok', now, wake, waiting, answers and { tally_of(offerer) } or {}, granted, refused, crowded, math.max(0, capacity - redis.call('ZCARD', permits)),
  full and 1 or 0, no_memory }
