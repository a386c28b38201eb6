-- renew: joins a session, and keeps it, its waiters and all its permits alive. The heartbeat.
--
-- ARGV   2 session   3 the epoch it knows, '' if none   4 lease, ms   5 capacity it declares
--        6 JSON about it for operators   7 an epoch to use if there is none
--        8 number of permits, 9 of sharers, 10 the operator's capacity it knows, 0 if none: restored if state was lost
--        11 the minimum it wants to be guaranteed   12 how many sessions there were when it last asked
--        13 number of permits that cover a backend it recorded   14 what it has measured a move to cost, us, 0 if nothing new
--        then the permits' UUIDs
--        then for each sharer: its name, the permits it holds, how many of those it is still to give back, and as how many
--        recalls it has heard of and how many of them withdrawn; see tell_owed in recalls
--        then for each permit that covers a backend: its place among the UUIDs, from 1, and "<pid> <start> <server> <n>", see cover in quarantine
-- Returns {'ok', now, epoch, capacity in force, waiting, sharded, gate, {UUIDs not held any more}, limit, {recalls}, minimum, sessions,
--         {UUID, "<pid> <start> <until>", ...}, listeners, full}
--          the last list      the quarantine, for a session that has a connection to end those backends by; else empty
--          listeners   subscriptions of the session at this server; -1 if unknown, or if it joins only now
--          full        1 if Redis has reached maxmemory, else 0; see memory
--          limit     an operator's capacity, 0 if none
--          recalls   for each sharer two numbers: the permits ever recalled from it, and the recalls withdrawn
--          sharded   1 if pushes go by sharded pub/sub, else 0
--          gate      ms until which nothing new is granted, because state was lost
--          minimum   what is guaranteed: less than was wanted if the minima of all would be more than the capacity
--      or {'refused', minima of the others, capacity} to a session that joins with a minimum for which there is no room
-- Twice: only sets expiries, and re-asserts what its caller holds.
--
-- State loss. A session that knows an epoch and finds none, or another, sees that Redis forgot. So does the first
-- session to arrive if others are still subscribed. Then nothing new is granted until every holder has either re-asserted
-- what it holds or stopped trusting it: for one lease, or, from a
-- little after a heartbeat's time, once as many sessions have come back as any of them knew of. A semaphore nobody knows is new, and pays nothing.

local own, known, ttl, declared = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local n_permits, n_sharers, limit = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local minimum, roster, n_backends = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local FIRST = 15
local joins = known == ''
local EARLY = 0.45 -- of a lease: a heartbeat comes after a third of it, and once more a twelfth later if that failed

-- What only a heartbeat looks at all of; others do without it, or with an error, until the next one.
for i, field in ipairs({ 'cap', 'gate', 'reserve', 'count', 'skew', 'last' }) do sound(state[i + 1], field) end
local rest = { 'seq', 'limit', 'early', 'known', 'news' }
for i, value in ipairs(redis.call('HMGET', meta, unpack(rest))) do sound(value, rest[i]) end
if gate > now + DAY then sound('no such time', 'gate') end
-- The fleet's first heartbeat in a lease's time looks for what is there for good, and no script put there.
local sweeps = math.floor(now / ttl) > math.floor(last / ttl)

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

-- A newcomer cannot tell a clock that was set from a fleet that died: it asks who listens.
if joins and epoch and now - last > math.min(ttl, lease) / 2 and #listening() > 0 then
  now = last
  redis.call('HSET', meta, 'skew', whole(time - now))
end

-- Holds grants back, and has all who listen re-assert what they hold now.
local function close_gate(others)
  for _, session in ipairs(others) do push(session, 'l') end
  gate = now + ttl
  redis.call('HSET', meta, 'gate', whole(gate), 'early', whole(now + EARLY * ttl), 'known', 0, 'news', 0)
end

local lost, fresh = not joins and known ~= epoch, false
if not epoch then
  epoch = ARGV[7]
  local others = listening()
  gate = 0
  -- Who is still here says so again. Permits stay: at worst they are counted until they expire.
  redis.call('DEL', sessions, info, capacities, shares, helds, debts, promises, reserves, recalls, moves)
  local count = 0
  for _, id in ipairs(redis.call('ZRANGE', permits, 0, -1)) do
    if is_ours(id) then count = count + 1 end
  end
  -- The queue stays, too: who comes now must not pass those in it.
  local seq, line = tonumber(redis.call('HGET', meta, 'seq') or 0), redis.call('ZRANGE', queue, 0, -1, 'WITHSCORES')
  for i = 2, #line, 2 do
    if tonumber(line[i]) ^ 2 < 2 ^ 106 then seq = math.max(seq, math.floor(tonumber(line[i]) % RANK / WANTS)) end
  end
  redis.call('HSET', meta, 'epoch', epoch, 'gate', 0, 'count', count, 'seq', whole(seq))
  redis.call('HDEL', meta, 'reserve')
  reserve = nil
  if fence then redis.call('HSET', meta, 'fence', 1) end
  fresh = not lost and #others == 0
  if not fresh then close_gate(others) end
elseif lost and gate == 0 then -- whoever came first could not know that others hold permits
  close_gate(listening())
end
if lost and limit > 0 and redis.call('HEXISTS', meta, 'limit') == 0 then
  redis.call('HSET', meta, 'limit', whole(limit))
end

local gone = redis.call('ZRANGEBYSCORE', sessions, '-inf', now, 'LIMIT', 0, 100)
if sweeps then
  local late = '(' .. whole(now + 2 * DAY)
  for _, session in ipairs(redis.call('ZRANGEBYSCORE', sessions, late, '+inf', 'LIMIT', 0, 100)) do gone[#gone + 1] = session end
  -- Whoever holds these, and lives, says so again within a day.
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', permits, late, '+inf', 'LIMIT', 0, 100)) do redis.call('ZADD', permits, whole(now + DAY), id) end
  redis.call('ZREMRANGEBYSCORE', promises, '(' .. whole(now + PROMISE + FARTHEST), '+inf')
  redis.call('ZREMRANGEBYSCORE', moves, '(' .. whole(now + MOVING), '+inf')
end
local ended = {}
for _, session in ipairs(gone) do
  ended[session] = session ~= own
  redis.call('ZREM', sessions, session)
  redis.call('ZREM', capacities, session)
  redis.call('HDEL', info, session)
end
-- What the dead wait for leaves the queue; and what a session waited for that was away for a lease, for it may have given that up meanwhile.
local function forget_requests()
  for _, request in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local id = string.match(request, '^%d+ (%S+)')
    if not id or ended[session_of(id)] or session_of(id) == own and not is_live(own) then redis.call('ZREM', queue, request) end
  end
end
if #gone > 0 then
  forget(ended)
  forget_requests()
end

if sweeps then -- what is kept for nobody
  for _, field in ipairs(redis.call('HKEYS', reserves)) do
    local session = string.match(field, '^%l+ (.*)')
    if session ~= own and not redis.call('ZSCORE', sessions, session or '') then redis.call('HDEL', reserves, field) end
  end
  if reserve then sum_reserves() end
end

-- Minima. The sum of those of live sessions never exceeds the capacity.
local function others_minima()
  local sum, all = 0, redis.call('HGETALL', reserves)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 4) == 'min ' and all[i] ~= 'min ' .. own then sum = sum + (tonumber(all[i + 1]) or 0) end
  end
  return sum
end
if minimum > 0 then
  local smallest = tonumber(redis.call('ZRANGE', capacities, 0, 0, 'WITHSCORES')[2] or declared)
  local room = tonumber(redis.call('HGET', meta, 'limit') or math.min(declared, smallest))
  local taken = others_minima()
  if joins and taken + minimum > room then return { 'refused', taken, room } end
  minimum = math.max(0, math.min(minimum, room - taken))
end

if redis.call('ZADD', sessions, whole(now + ttl), own) == 1 and gate > now and not lost then
  redis.call('HINCRBY', meta, 'news', 1)
end
redis.call('ZADD', capacities, declared, own)
if redis.call('ZCARD', capacities) > redis.call('ZCARD', sessions) then
  -- Sessions were deleted by somebody's hand. Those that live say so within a lease; what the others declare ends with it.
  for _, session in ipairs(redis.call('ZRANGE', capacities, 0, -1)) do redis.call('ZADD', sessions, 'NX', whole(now + ttl), session) end
end
redis.call('HSET', info, own, ARGV[6])

-- The shortest lease. `leasenext` is the shortest of those that sessions said since `leasesince`. It is in force at once if it is shorter than
-- what was. Otherwise once nobody has said a shorter one for twice its length: who has a shorter lease, and did not say so, is no session any
-- more for at least as long as what it could still be granted lasts.
local least, since = math.min(ttl, lease_of(redis.call('HGET', meta, 'leasenext') or ttl)), tonumber(redis.call('HGET', meta, 'leasesince') or '')
if fresh or ttl < lease then
  lease, least, since = ttl, ttl, now
elseif not (since and since <= now and since > now - 4 * DAY) then
  least, since = ttl, now
elseif now - since >= 2 * least then
  lease, least, since = math.max(lease, least), ttl, now
end
redis.call('HSET', meta, 'last', whole(now), 'lease', whole(lease), 'leasenext', whole(least), 'leasesince', whole(since))
if joins then note('young', YOUNG) end
learn_move(own, tonumber(ARGV[14]))
local capacity = effective_capacity()

purge(own)
redis.call('ZREMRANGEBYSCORE', promises, '-inf', now) -- balance does it, too, but only while somebody waits
local missing, parted = {}, {}
if fence then
  -- What is in quarantine was its holder's: he may have slept, and cannot have it back.
  for _, id in ipairs(redis.call('HKEYS', quarantine)) do parted[id] = true end
end
local expiry = whole(now + ttl)
local CHUNK = 1000
for from = 1, n_permits, CHUNK do
  local batch, upto = {}, math.min(from + CHUNK - 1, n_permits)
  for i = from, upto do
    local id = ARGV[FIRST + i - 1]
    if parted[id] then
      missing[#missing + 1] = id
    elseif lost then
      -- Truth first: its connection exists, whether or not there is room.
      if now < gate or redis.call('ZCARD', permits) < capacity or redis.call('ZSCORE', permits, id) then
        change = change + redis.call('ZADD', permits, expiry, id)
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
        if not parted[id] and not redis.call('ZSCORE', permits, id) then missing[#missing + 1] = id end
      end
    end
  end
end

local at = FIRST + n_permits
local told, owing, redebted = {}, 0, false
for i = 1, n_sharers do
  local sharer, held, owed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local recalled, withdrawn = tally_of(sharer)
  told[2 * i - 1], told[2 * i] = recalled, withdrawn
  -- Who has heard all knows best what is still to be given; who has not is also to give what it has not heard of. What was owed to
  -- a state that is lost is forgotten on both sides.
  local counted = debt_of(sharer)
  local debt = counted
  if not lost then
    local heard, unheard = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    if heard == recalled and unheard == withdrawn then
      debt = owed
    elseif heard <= recalled and unheard <= withdrawn then
      debt = math.max(owed, counted)
    end -- else it has heard more than there is: the counts were deleted, and it forgets what it owes
  end
  debt = math.floor(math.min(held, debt))
  at = at + 5
  owing = owing + debt
  if held_by(sharer) ~= held or counted ~= debt then
    redebted = redebted or counted ~= debt
    if held > 0 then redis.call('HSET', helds, sharer, held) else redis.call('HDEL', helds, sharer) end
    if debt > 0 then redis.call('HSET', debts, sharer, debt) else redis.call('HDEL', debts, sharer) end
    place(sharer, held - debt)
    for _ = debt + 1, counted do keep_promise(sharer) end
  end
end

-- What the session's minimum lacks. The running count is right unless what it rests on was deleted, or debts changed just now; grants and
-- releases on their way make the session's own differ for a moment, so only the permits themselves settle which is right.
if minimum > 0 or redis.call('HEXISTS', reserves, 'min ' .. own) == 1 then
  local counted = tonumber(redis.call('HGET', reserves, 'free ' .. own) or '')
  if redebted or counted ~= minimum - (n_permits - #missing) + owing or tonumber(redis.call('HGET', reserves, 'min ' .. own) or '') ~= minimum then
    counted = minimum + owing
    for _, id in ipairs(redis.call('ZRANGE', permits, 0, -1)) do
      if session_of(id) == own and not parted[id] then counted = counted - 1 end
    end
    redis.call('HSET', reserves, 'min ' .. own, minimum, 'free ' .. own, counted)
  end
  sum_reserves()
end

-- The backends, should Redis have forgotten.
if n_backends > 0 then
  fence = true
  redis.call('HSET', meta, 'fence', 1)
  local gone = {}
  for _, id in ipairs(missing) do gone[id] = true end
  for from = 1, n_backends, CHUNK do
    local ids, said = {}, {}
    for i = from, math.min(from + CHUNK - 1, n_backends) do
      local id = ARGV[FIRST + tonumber(ARGV[at + 2 * i - 2]) - 1]
      if not gone[id] then
        ids[#ids + 1] = id
        said[#said + 1] = ARGV[at + 2 * i - 1]
      end
    end
    local recorded = #ids > 0 and redis.call('HMGET', backends, unpack(ids)) or {}
    for i, id in ipairs(ids) do
      if recorded[i] ~= said[i] then cover(id, said[i], recorded[i]) end
    end
  end
end
if fence and redis.call('HLEN', backends) > redis.call('ZCARD', permits) then
  -- Somebody's hand, or a client that knows nothing of backends, has removed permits that expired.
  for _, id in ipairs(redis.call('HKEYS', backends)) do
    if not redis.call('ZSCORE', permits, id) then redis.call('HDEL', backends, id) end
  end
end
local to_end = {}
if fence then
  for id, backend in quarantined() do
    if tonumber(string.match(backend, '%d+$')) < now then
      redis.call('HDEL', quarantine, id) -- BOUND has passed long ago
    elseif n_backends > 0 then
      to_end[#to_end + 1] = id
      to_end[#to_end + 1] = backend
    end
  end
  if not fences() then redis.call('HDEL', meta, 'fence') end
end

if lost and gate > now and roster > tonumber(redis.call('HGET', meta, 'known') or 0) then
  redis.call('HSET', meta, 'known', roster)
end
if open_gate() then
  pump(capacity, '', {})
  if redis.call('ZCARD', queue) > 0 then ask_look(own) end
  if redis.call('ZCARD', queue) + redis.call('ZCARD', promises) > 0 and not awaits_look() then balance(capacity) end
end
drain(capacity) -- also while nobody waits, or the gate is shut
tally()
local listeners = not joins and push(own, 'h')
return { 'ok', now, epoch, capacity, redis.call('ZCARD', queue), sharded and 1 or 0, gate, missing,
  tonumber(redis.call('HGET', meta, 'limit') or 0), told, minimum, redis.call('ZCARD', sessions),
  to_end, type(listeners) == 'number' and listeners or -1, full and 1 or 0 }
