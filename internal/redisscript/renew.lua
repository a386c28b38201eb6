-- renew: runs behind sweep. The heartbeat: joins a session, and keeps it, its waiters and all its
-- permits alive.
--
-- ARGV   2 session   3 the epoch it knows, '' if none   4 lease, ms   5 the capacity it declares
--        6 JSON about it for operators   7 names an epoch if there is none   8 number of permits
--        9 number of pools   10 the operator's capacity that it knows, 0 if none: restored if state
--        was lost   11 the minimum it wants guaranteed   12 how many sessions there were last time
--        13 number of permits with a backend   14 what it measured a move to cost, us, 0: no news
--        15 the operator's pause that it knows, '' if none: restored if state was lost
--        16 what happened to it since its last call, for operators, '' if nothing did
--        then the permits' UUIDs
--        then for each pool: its name, the permits it holds, how many of those it is still to give
--        back, how many recalls it has heard of, and how many of them withdrawn; see push_recalls
--        then for each permit with a backend: its place among the UUIDs, from 1, and its record,
--        "<pid> <start> <server> <n>", see record_backend
-- Returns {'ok', now, epoch, capacity in force, requests waiting, 1 if pushes are sharded or 0,
--         ms until which grants are paused because state was lost, {UUIDs not held any more},
--         an operator's capacity or 0, {permits ever recalled, recalls withdrawn, of each pool},
--         the minimum guaranteed: less than wanted if all would exceed the capacity, sessions,
--         {UUID, "<pid> <start> <until>", ... in quarantine, if it has a connection to end those
--         backends by}, its subscriptions at this server, -1 if unknown or if it joins, 1 if Redis
--         has reached maxmemory or 0: see memory, the operator's pause or ''}
--      or {'refused', minima of the others, capacity} to a session that joins with a minimum for
--         which there is no room
-- Clock: Redis's. Twice: only sets expiries, and re-asserts what its caller holds.
--
-- State loss. A session that knows an epoch and finds none, or another, sees that Redis forgot. The
-- first session to arrive sees it, too, if others are still subscribed. Then grants are paused
-- until every holder has either re-asserted what it holds or stopped trusting it. The pause lasts
-- for one lease. From a little after a heartbeat's time it ends once as many sessions are back as
-- any of them knew of. A session that has found the loss calls again at once, and is back with that
-- call: see may_grant. A semaphore that nobody knows is new, and pays nothing.

local own, known, ttl, declared = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local n_permits, n_pools, limit = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local minimum, seen, n_backends = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local FIRST, FIRST_POOL, FIRST_BACKEND = 17, 17 + n_permits, 17 + n_permits + 5 * n_pools
local CHUNK = 1000 -- permits in one command
local EARLY = 0.45 -- of a lease: a heartbeat comes after a third, a twelfth later if that failed
local joins, lost, fresh, capacity, operators = known == '', false, false, nil, nil
local missing, in_quarantine = {}, {} -- UUIDs not held any more; a set of UUIDs
local restored = 0 -- permits that were not there, and are now

-- Also has those who listen re-assert now what they hold. The sessions that are here have joined
-- the new state: one that knows another epoch pauses grants before it is added. A hand can have
-- deleted either of the two keys that list them.
local function pause_grants(others)
  record_event('state lost', own, nil, nil, ARGV[6])
  for _, session in ipairs(others) do push(session, PUSH.lost) end
  paused_until = now + ttl
  local joined = math.max(redis.call('ZCARD', sessions), redis.call('HLEN', info))
  redis.call('HSET', meta, 'gate', whole(paused_until), 'early', whole(now + EARLY * ttl),
    'known', 0, 'news', joined)
end

-- Starts a state under a new epoch. A call can be executed twice, and the state be lost in between:
-- the time tells the two states apart. Live sessions repeat what is deleted here. Permits stay: at
-- worst they are counted until they expire. The queue stays, too: a newcomer must not pass it.
local function start_state()
  epoch, paused_until, reserve = ARGV[7] .. '.' .. whole(now), 0, nil
  local others, ours = subscribed_others(own), 0
  redis.call('DEL', sessions, info, capacities, levels, held_counts, debts, promises, reserves,
    recalls, moves)
  for _, id in ipairs(redis.call('ZRANGE', permits, 0, -1)) do
    if is_ours(id) then ours = ours + 1 end
  end
  local seq = tonumber(redis.call('HGET', meta, 'seq') or 0)
  local line = redis.call('ZRANGE', queue, 0, -1, 'WITHSCORES')
  for i = 2, #line, 2 do seq = math.max(seq, seq_of(tonumber(line[i])) or 0) end
  redis.call('HSET', meta, 'epoch', epoch, 'gate', 0, 'count', ours, 'seq', whole(seq))
  redis.call('HDEL', meta, 'reserve')
  if has_backends then redis.call('HSET', meta, 'fence', 1) end
  fresh = not lost and #others == 0
  if not fresh then pause_grants(others) end
end
local function notice_loss()
  lost = not joins and known ~= epoch
  if not epoch then
    start_state()
  elseif lost and paused_until == 0 then -- the first to come could not know that others hold any
    pause_grants(subscribed_others(own))
  end
  local forgot = lost and limit > 0 and redis.call('HEXISTS', meta, 'limit') == 0
  if forgot then set_meta('limit', limit) end
  if lost and not pause and ARGV[15] ~= '' then
    pause = parse_pause(ARGV[15])
    if pause then redis.call('HSET', meta, 'pause', ARGV[15]) end
  end
end
local function end_pause() -- whose time is over
  if not pause or pause.upto > now then return end
  redis.call('HDEL', meta, 'pause')
  record_event('resumed', nil, 'its time was over')
  if pause.drains then withdraw_unpromised() end
  pause = nil
end

-- Ends dead sessions. Their requests leave the queue. This session's leave, too, if it was away for
-- a lease: it may have given them up meanwhile.
local function end_sessions(sweeps)
  local gone, ended = between(sessions, '-inf', now), {}
  if sweeps then sweep_expiries(gone, now + PROMISE + FARTHEST, now + MOVING) end
  for _, session in ipairs(gone) do
    if session ~= own then
      ended[session] = true
      record_event('expired', session)
    end
    remove_session(session)
  end
  if #gone > 0 then
    forget_sessions(ended)
    for _, request in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
      local session = session_of(string.match(request, '^%d+ (%S+)') or '')
      local away = session == own and not is_live(own)
      if session == '' or ended[session] or away then redis.call('ZREM', queue, request) end
    end
  end
  if sweeps then
    sweep_reserves(own)
    if reserve then sum_reserves() end
  end
end
local function minima_besides(session) -- the sum of the others
  local all, sum = redis.call('HGETALL', reserves), 0
  for i = 1, #all, 2 do
    local other = string.match(all[i], '^min (.*)')
    if other and other ~= session then sum = sum + (tonumber(all[i + 1]) or 0) end
  end
  return sum
end
-- Requests for several permits leave the head of the queue if the minima of others leave no room
-- for them. Such a request is not granted while those are kept, and stops the queue. Perhaps nobody
-- waits for it: a batch that was long on its way can bring it back after it was withdrawn. If its
-- session does wait, it asks again, and comes behind the others.
local function sweep_queue()
  repeat
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    local _, ids = parse(head or '')
    local session = ids[2] and session_of(ids[1])
    if not session or #ids <= capacity - minima_besides(session) then return end
    redis.call('ZREM', queue, head)
    push(session, PUSH.retry)
  until false
end
-- Bounds the minimum: those of live sessions never exceed the capacity in sum. Returns a refusal
-- for a session that joins and finds no room.
local function bound_minimum()
  if minimum <= 0 then return end
  local smallest = tonumber(redis.call('ZRANGE', capacities, 0, 0, 'WITHSCORES')[2] or declared)
  local room = tonumber(redis.call('HGET', meta, 'limit') or math.min(declared, smallest))
  local taken = minima_besides(own)
  if joins and taken + minimum > room then return { 'refused', taken, room } end
  minimum = math.max(0, math.min(minimum, room - taken))
end
-- Keeps the session alive. It is back, see may_grant, if it was among the sessions already when a
-- call of it first writes to `info`: the call that found the loss has put it there. A session that
-- joins counts among the news. A session whose lease was over does, too: perhaps it joined after
-- the loss. A call that is executed twice finds the field of `info`, and counts once.
local function keep_session()
  local added = redis.call('ZADD', sessions, whole(now + ttl), own) == 1
  local told = not lost and redis.call('HSET', info, own, ARGV[6]) == 1
  local is_new = told and (joins or added)
  if is_new and paused_until > now then redis.call('HINCRBY', meta, 'news', 1) end
  redis.call('ZADD', capacities, declared, own)
  restore_sessions(ttl)
  if joins then record_event('joined', own) end
  if ARGV[16] ~= '' then record_event('reported', own, ARGV[16], nil, ARGV[6]) end
end

-- Keeps the fleet's shortest lease. `leasenext` is the shortest that sessions said since
-- `leasesince`. It is in force at once if it is shorter than the lease in force; otherwise once no
-- session has said a shorter one for twice its length. Any with a shorter lease has then been no
-- session for at least as long as anything lasts that it could still be granted.
local function keep_shortest_lease()
  local m = redis.call('HMGET', meta, 'leasenext', 'leasesince')
  local least, since = math.min(ttl, lease_of(m[1] or ttl)), tonumber(m[2] or '')
  if fresh or ttl < lease then
    lease, least, since = ttl, ttl, now
  elseif not (since and since <= now and since > now - 4 * DAY) then
    least, since = ttl, now
  elseif now - since >= 2 * least then
    lease, least, since = math.max(lease, least), ttl, now
  end
  redis.call('HSET', meta, 'last', whole(now), 'lease', whole(lease), 'leasenext', whole(least),
    'leasesince', whole(since))
end

-- Renews what is held. After a loss the session re-asserts it. Truth first: its connections exist,
-- whether or not there is room. But a holder that slept cannot have back what is in quarantine.
local function renew_permits()
  local ids = has_backends and redis.call('HKEYS', quarantine) or {}
  for _, id in ipairs(ids) do in_quarantine[id] = true end
  local expiry = whole(now + ttl)
  for from = FIRST, FIRST_POOL - 1, CHUNK do
    local batch = {}
    for i = from, math.min(from + CHUNK, FIRST_POOL) - 1 do
      local id = ARGV[i]
      if not (lost or in_quarantine[id]) then
        batch[#batch + 1] = expiry
        batch[#batch + 1] = id
      elseif not in_quarantine[id] and (now < paused_until
        or redis.call('ZCARD', permits) < capacity or redis.call('ZSCORE', permits, id)) then
        restored = restored + redis.call('ZADD', permits, expiry, id)
      else
        missing[#missing + 1] = id
      end
    end
    -- CH counts the changed; an expiry changes unless two renewals meet within a millisecond.
    local all = #batch == 0 or redis.call('ZADD', permits, 'XX', 'CH', unpack(batch)) == #batch / 2
    for i = 2, all and 0 or #batch, 2 do
      if not redis.call('ZSCORE', permits, batch[i]) then missing[#missing + 1] = batch[i] end
    end
  end
end

-- Settles what each pool holds and owes. A pool that has heard of all recalls knows best what it
-- owes. Any other is also to give what it has not heard of. If counts or the state are lost, both
-- sides forget earlier debts. Returns recalls, the sum of the debts, and whether a debt changed.
local function settle_pools()
  local told, owing, changed = {}, 0, false
  for at = FIRST_POOL, FIRST_BACKEND - 1, 5 do
    local pool, held, owed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local heard, unheard = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    local recalled, withdrawn = recalls_of(pool)
    local counted = debt_of(pool)
    local debt = math.max(owed, counted)
    if lost or heard > recalled or unheard > withdrawn then
      debt = counted
    elseif heard == recalled and unheard == withdrawn then
      debt = owed
    end
    debt = math.floor(math.min(held, debt))
    if held_by(pool) ~= held or counted ~= debt then
      set_count(held_counts, pool, held)
      set_count(debts, pool, debt)
      place(pool, held - debt)
      for _ = debt + 1, counted do fulfil_promise(pool) end
    end
    told[#told + 1], told[#told + 2] = recalled, withdrawn
    owing, changed = owing + debt, changed or counted ~= debt
  end
  return told, owing, changed
end
-- Settles what the minimum lacks. The running count is right unless what it rests on was deleted,
-- or a debt changed just now. Grants and releases on their way make the session's own count differ
-- for a moment, so only the permits themselves settle which is right. A late call can restore what
-- was released since.
local function settle_minimum(owing, debts_changed)
  if minimum <= 0 and redis.call('HEXISTS', reserves, 'min ' .. own) == 0 then return end
  local counted = tonumber(redis.call('HGET', reserves, 'free ' .. own) or '')
  if debts_changed or restored > 0 or counted ~= minimum - (n_permits - #missing) + owing
    or tonumber(redis.call('HGET', reserves, 'min ' .. own) or '') ~= minimum then
    counted = minimum + owing
    for _, id in ipairs(redis.call('ZRANGE', permits, 0, -1)) do
      if session_of(id) == own and not in_quarantine[id] then counted = counted - 1 end
    end
    redis.call('HSET', reserves, 'min ' .. own, minimum, 'free ' .. own, counted)
  end
  sum_reserves()
end

local function record_backends() -- should Redis have forgotten them
  if n_backends == 0 then return end
  has_backends = true
  redis.call('HSET', meta, 'fence', 1)
  local gone, upto = {}, FIRST_BACKEND + 2 * n_backends - 1
  for _, id in ipairs(missing) do gone[id] = true end
  for from = FIRST_BACKEND, upto, 2 * CHUNK do
    local ids, records = {}, {}
    for i = from, math.min(from + 2 * CHUNK - 1, upto), 2 do
      local id = ARGV[FIRST + tonumber(ARGV[i]) - 1]
      if not gone[id] then ids[#ids + 1], records[#records + 1] = id, ARGV[i + 1] end
    end
    local there = #ids > 0 and redis.call('HMGET', backends, unpack(ids)) or {}
    for i, id in ipairs(ids) do
      if there[i] ~= records[i] then record_backend(id, records[i], there[i]) end
    end
  end
end
local function list_backends_to_end() -- if this session has a connection to end them by
  local list = {}
  if not has_backends then return list end
  sweep_backends()
  for id, backend in backends_to_end() do
    if tonumber(string.match(backend, '%d+$')) < now then
      redis.call('HDEL', quarantine, id) -- ASKED has passed
    elseif n_backends > 0 then
      list[#list + 1], list[#list + 2] = id, backend
    end
  end
  if not any_backends() then redis.call('HDEL', meta, 'fence') end
  return list
end

validate_meta(stored)
local sweeps = math.floor(now / ttl) > math.floor(last / ttl) -- the fleet's first in a lease
if joins then notice_step(math.min(ttl, lease), own) end
notice_loss()
end_pause()
end_sessions(sweeps)
local refusal = bound_minimum()
if refusal then return refusal end
keep_session()
keep_shortest_lease()
if joins then note('young', YOUNG) end
learn_move(own, tonumber(ARGV[14]))
capacity, operators = effective_capacity()
expire_leases(own)
redis.call('ZREMRANGEBYSCORE', promises, '-inf', now) -- balance does so only while requests wait
renew_permits()
change = change + restored
local told, owing, debts_changed = settle_pools()
settle_minimum(owing, debts_changed)
record_backends()
local to_end = list_backends_to_end()
local before = lost and paused_until > now and tonumber(redis.call('HGET', meta, 'known') or 0)
if before and seen > before then set_meta('known', seen) end
if sweeps and reserve then sweep_queue() end
move_permits(capacity, own)
drain(capacity) -- also while no request waits, or grants are paused
save_count()
local listeners = not joins and push(own, PUSH.heartbeat)
return { 'ok', now, epoch, capacity, redis.call('ZCARD', queue), sharded and 1 or 0, paused_until,
  missing, tonumber(operators or 0), told, minimum, redis.call('ZCARD', sessions), to_end,
  type(listeners) == 'number' and listeners or -1, full and 1 or 0,
  pause and redis.call('HGET', meta, 'pause') or '' }
