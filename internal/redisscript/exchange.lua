-- exchange: runs behind queue; plain, handover and memory come first. Everything a session wants at
-- once: releases, grants to the queue, new requests; then, in waiting, offers.
--
-- ARGV   2 session    3 its epoch    4 lease, ms
--        5 number of plain permits to release, 6 to wait for, 7 to try for, each alone
--        8 the most requests that may wait, 0 for any number
--        then the UUIDs of the plain permits
--        then, if there is anything else: number of requests to drop, to ask, permits offered, the
--        pool that offers, and what the session has measured a move to cost, us, 0 if nothing new
--        then the requests to drop, "<ttl, ms> <UUID>...": released if held, else out of the queue
--        then the requests to ask, each its kind (ASK of common) and the request
-- Returns now, ms, or 0 if it was not looked up: all is released, all is granted, nobody waits
--      or {'served', now, when to ask again if a request of this session waits, ms, requests in the
--         queue, {granted UUIDs}}: all is released, and handed over to requests in the queue
--      or {'ok', now, when to ask again if a request of this session waits, ms, 0 if unknown,
--         requests in the queue, {recalled, withdrawn} of the pool that offers if some of what it
--         offered is needed (see push_recalls) or {}, {granted UUIDs}, {first UUIDs of requests
--         refused}, {of those the queue has no place for}, permits that nobody holds (if requests
--         wait: held back for a minimum, or while pools join), 1 if Redis has reached maxmemory and
--         nothing new was granted or queued or 0, {first UUIDs of those it has no memory for}}
--         Refused: ASK.try that found no room, ASK.hold of what is not held, a request for more
--         than the capacity, or for all or none of what is held in part.
--      or {'gone'} to a session that must renew first: unknown here, or of another epoch
-- Clock: Redis's. Twice: the UUIDs are the client's. A request that is held, or waits, is found and
-- left as it is (its lease is extended); what was dropped is not there. An offer is answered anew,
-- which promises at most what is still needed.

local own, most_waiting = ARGV[2], tonumber(ARGV[8])
local n_drops, n_asks = tonumber(ARGV[REST] or 0), tonumber(ARGV[REST + 1] or 0)
local offered, offerer = tonumber(ARGV[REST + 2] or 0), ARGV[REST + 3]
if epoch ~= ARGV[3] or REST - WANTED + n_asks > 0 and not is_live(own) then return { 'gone' } end
local paused, waiting, free = not may_grant(), nil, nil
local expired, queued = false, false -- whether leases were expired; whether the queue changed
local granted, refused, crowded, no_memory = {}, {}, {}, {}

local function release_all()
  for i = FIRST, WANTED - 1 do release(ARGV[i]) end
  for i = REST + 5, REST + 4 + n_drops do
    local held, _, ids = false, parse(ARGV[i])
    for _, id in ipairs(ids) do held = release(id) or held end
    if not held then redis.call('ZREM', queue, ARGV[i]) end
  end
end
-- Grants to the queue. Its head may have room when expired leases end, whatever our requests find.
local function serve_queue()
  waiting = redis.call('ZCARD', queue)
  if waiting == 0 or paused then return end
  expired = true
  expire_leases(own)
  free = grant_queue(cap, own, granted)
  waiting = redis.call('ZCARD', queue)
end
-- Returns how many of n permits this session can be granted. Expired leases count as held until a
-- request needs their room: that errs on the safe side, and saves the common case a look.
local function room(n)
  free = free or cap - redis.call('ZCARD', permits)
  if not expired and grantable(n, free, own) < n then
    expired = true
    expire_leases(own)
    free = cap - redis.call('ZCARD', permits)
  end
  return grantable(n, free, own)
end
-- Returns a request's rank. A request that a minimum lacks goes first. Pools are served by level,
-- and all that hold nothing by arrival, like requests for plain permits.
local function rank_of(id)
  if (min_lacks(session_of(id)) or 0) > 0 then return 0 end
  local held = is_pooled(id) and held_by(pool_of(id)) or 0
  if held <= 0 then return LEVELS end
  return math.min(8191, LEVELS + math.max(1, math.floor(LEVELS * held / weight_of(id))))
end

-- Returns the next number in the order of arrival. Once it outgrows its part of a place, it would
-- count for the rank. So those that wait are numbered anew from 1, in the same order. The numbers
-- of promises only tell them apart, and promises do not last until a number comes again.
local function next_seq()
  local seq = redis.call('HINCRBY', meta, 'seq', 1)
  if seq < RANK / WANTS then return seq end
  local line, order = redis.call('ZRANGE', queue, 0, -1, 'WITHSCORES'), {}
  for i = 1, #line, 2 do
    local place = tonumber(line[i + 1])
    if is_exact(place) then order[#order + 1] = { request = line[i], place = place } end
  end
  table.sort(order, function(a, b) return a.place % RANK < b.place % RANK end)
  for i, waiter in ipairs(order) do
    local place = waiter.place - waiter.place % RANK + i * WANTS + waiter.place % WANTS
    redis.call('ZADD', queue, whole(place), waiter.request)
  end
  set_meta('seq', #order + 1)
  return #order + 1
end
-- Puts a request for n permits into the queue, behind all others of its rank. One that waits
-- already keeps its place within its (new) rank, which can make it the head. But a pool that has
-- just given its last permit has waited for none until now.
local function enqueue(request, id, n)
  local old = tonumber(redis.call('ZSCORE', queue, request) or '')
  local crowds = not old and most_waiting > 0 and waiting >= most_waiting
  if crowds and not is_pooled(id) then return crowded end
  local rank, seq = rank_of(id), seq_of(old)
  if not seq or rank == LEVELS and old >= (LEVELS + 1) * RANK then
    seq = next_seq()
  end
  local place = rank * RANK + seq * WANTS + math.min(n, WANTS) - 1
  redis.call('ZADD', queue, whole(place), request)
  queued = queued or place ~= (old or -1)
  if not old then waiting = waiting + 1 end
end

-- Grants or queues a request. Returns nil then; else the list of the reply that it belongs in:
-- refused, crowded or no_memory.
local function grant_or_queue(kind, ttl, ids, request)
  local held, pooled = 0, kind == ASK.pool or kind == ASK.join
  for _, id in ipairs(ids) do
    -- A duplicate that strayed for a lease must not shorten the quarantine.
    if is_quarantined(id) then return refused end
    if redis.call('ZSCORE', permits, id) then held = held + 1 end
  end
  if held == #ids or held > 0 and pooled then -- a duplicate, or an extension
    for _, id in ipairs(ids) do
      if held == #ids or redis.call('ZSCORE', permits, id) then
        extend(id, ttl)
        granted[#granted + 1] = id
      end
    end
    return nil
  end
  -- All or none, and held in part. Some were removed by hand, and the session must drop the others.
  -- Or some are released by now, and this is a duplicate that strayed: the others are in use.
  if held > 0 then return refused end
  if pooled then request = ttl .. ' ' .. ids[1] end -- a pool waits for one permit
  if full and kind ~= ASK.hold then
    -- A request in the queue keeps its place, and is granted when a permit is given back.
    return not redis.call('ZSCORE', queue, request) and no_memory or nil
  end
  local first = waiting == 0 or (min_lacks(own) or 0) >= #ids -- a minimum need not queue
  local some = first and not paused and kind ~= ASK.hold and room(#ids) or 0
  if pooled and some > 0 then some = at_once(pool_of(ids[1]), some, cap, kind == ASK.join) end
  if some == #ids or pooled and some > 0 then
    if waiting > 0 then waiting = waiting - redis.call('ZREM', queue, request) end
    for i = 1, some do
      grant(ids[i], ttl)
      granted[#granted + 1] = ids[i]
    end
    free = free - some
    return nil
  end
  local may_wait = pooled or kind == ASK.wait and #ids <= cap
  if may_wait then return enqueue(request, ids[1], #ids) end
  -- It may have waited while the capacity was larger.
  if kind == ASK.wait then waiting = waiting - redis.call('ZREM', queue, request) end
  return refused
end
local function ask(kind, ttl, ids, request)
  local list = grant_or_queue(kind, ttl, ids, request)
  if list then list[#list + 1] = ids[1] end
end
local function ask_all()
  for i = 1, n_waits + n_tries do
    local id, kind = ARGV[WANTED + i - 1], i <= n_waits and ASK.wait or ASK.try
    ask(kind, tonumber(ARGV[4]), { id }, ARGV[4] .. ' ' .. id)
  end
  for i = REST + 5 + n_drops, REST + 3 + n_drops + 2 * n_asks, 2 do
    local ttl, ids = parse(ARGV[i + 1])
    ask(ARGV[i], ttl, ids, ARGV[i + 1])
  end
  if queued and not paused and free > 0 then
    -- That can suffice now: a big request at the head may be behind one of lower rank.
    grant_queue(cap, own, granted)
    waiting = redis.call('ZCARD', queue)
  end
end

learn_move(own, tonumber(ARGV[REST + 4] or 0))
release_all()
serve_queue()
local began = waiting == 0
ask_all()
save_count()

local function answer(wake, recalled) -- when to ask again; what is recalled of the pool that offers
  return { 'ok', now, wake, waiting, recalled, granted, refused, crowded,
    math.max(0, cap - redis.call('ZCARD', permits)), full and 1 or 0, no_memory }
end
-- The rest is for requests that wait. Where it has nothing to do, it is not even made.
if waiting == 0 and (paused or redis.call('ZCARD', promises) == 0) then return answer(0, {}) end
