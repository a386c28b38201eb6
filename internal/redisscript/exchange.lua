-- exchange: everything a session wants at once. Releases, then grants to the queue, then new requests, then offers.
--
-- ARGV   1 session    2 its epoch    3 lease, ms
--        4 number of requests to drop, 5 to ask, 6 units offered, 7 the sharer that offers
--        then the requests to drop, "<ttl> <UUID>...": released if held, out of the queue if waiting
--        then the requests to ask, each a kind and the request:
--          't' all or none, now        'w' all or none, waiting in the queue
--          'e' one that is held: extends its lease
--          's' one sharer's wish for as many of the UUIDs as are free; if none is, it waits for the first one
-- Returns {'ok', now, wake, waiting, promised, {granted UUIDs}, {first UUIDs of requests refused}}
--          wake      when to look again if something of this session is left in the queue, ms, 0 if unknown
--          waiting   requests left in the queue, of anyone
--          promised  how many of the offered units are needed: the sharer is to release that many
--          refused   't' that found no room, 'e' that is not held, or more than the whole capacity
--      or {'gone'} if the session is unknown here, or the state is of another epoch: it must renew first.
-- Clock: Redis's.
-- Twice: the UUIDs are the client's. A request that is held, or waits, is found and left as it is (its lease is extended); what was
-- dropped is not there. An offer is answered anew, which promises at most what is still needed.

local own, epoch, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local n_drops, n_asks, offered, offerer = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local at = 8

local state = redis.call('HMGET', meta, 'epoch', 'cap', 'gate')
if state[1] ~= epoch or n_asks > 0 and not is_live(own) then return { 'gone' } end
local capacity, gate = tonumber(state[2] or 0), tonumber(state[3] or 0)
local shut = gate > now
local granted, refused = {}, {}

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
  if free < n and not purged then
    purged = true
    purge()
    free = capacity - redis.call('ZCARD', permits)
  end
  return free >= n
end

if waiting > 0 and not shut then
  if room(1) then
    free = pump(capacity, own, granted)
    waiting = redis.call('ZCARD', queue)
  end
end

-- Puts a request into the queue, behind all others of its rank; one that waits already keeps its turn within
-- its (new) rank. Sharers with fewer permits come first; all other requests are first come, first served.
local function enqueue(request, rank)
  local old = redis.call('ZSCORE', queue, request)
  local seq = old and tonumber(old) % RANK or redis.call('HINCRBY', meta, 'seq', 1)
  redis.call('ZADD', queue, whole(math.min(rank, 4096) * RANK + seq), request)
  if old then return false end
  waiting = waiting + 1
  return true
end

-- Tells the holders that somebody waits, so that they offer what lies idle.
local function tell_holders()
  for _, sharer in ipairs(redis.call('ZREVRANGE', shares, 0, TOLD - 1)) do
    push(session_of(sharer), 'w ' .. sharer)
  end
end

local before, asked = waiting, false
for _ = 1, n_asks do
  local kind, request = ARGV[at], ARGV[at + 1]
  at = at + 2
  local length, ids = parse(request)
  local alone = #ids == 1 and (kind == 'w' or kind == 't') and waiting == 0 and not shut and room(1)
  local held = 0
  for i = 1, alone and 0 or #ids do
    if redis.call('ZSCORE', permits, ids[i]) then
      held = held + 1
      redis.call('ZADD', permits, whole(now + length), ids[i])
      granted[#granted + 1] = ids[i]
    end
  end
  if held > 0 then
    -- A duplicate, or an extension.
  elseif alone then -- The common case, in one command: ZADD tells whether it is a duplicate.
    if grant(ids[1], length) then free = free - 1 end
    granted[#granted + 1] = ids[1]
  elseif kind == 'e' then
    refused[#refused + 1] = ids[1]
  elseif kind == 's' then
    local first = length .. ' ' .. ids[1]
    if waiting == 0 and not shut and room(1) then
      for i = 1, math.min(#ids, free) do
        grant(ids[i], length)
        granted[#granted + 1] = ids[i]
        free = free - 1
      end
    else
      asked = enqueue(first, share_of(sharer_of(ids[1]))) or asked
    end
  elseif #ids > capacity then
    refused[#refused + 1] = ids[1]
  elseif waiting == 0 and not shut and room(#ids) then
    for _, id in ipairs(ids) do
      grant(id, length)
      granted[#granted + 1] = id
    end
    free = free - #ids
  elseif kind == 't' then
    refused[#refused + 1] = ids[1]
  else
    asked = enqueue(request, 0) or asked
  end
end
if asked then
  -- Free capacity can be there still: a big request at the head may now be behind a sharer of lower rank.
  if not shut and room(1) then
    pump(capacity, own, granted)
    waiting = redis.call('ZCARD', queue)
  end
  -- Holders were told when the queue began; what they get from then on tells them, too.
  if before == 0 and waiting > 0 and not shut then tell_holders() end
end

local promised = 0
if offered > 0 and waiting > 0 and not shut then
  redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)
  promised = math.min(offered, math.max(0, waiting - redis.call('ZCARD', promises)), share_of(offerer))
  for _ = 1, promised do promise(offerer) end
end
if waiting > 0 and not shut then balance() end

local wake = 0
if waiting > 0 then
  if shut then
    wake = gate
  else
    wake = tonumber(redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')[2] or 0)
  end
end
return { 'ok', now, wake, waiting, promised, granted, refused }
