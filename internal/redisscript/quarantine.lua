-- quarantine: the end of leases, and of backends before that. After shares, before every script.

local BOUND = 10000 -- ms that a permit in quarantine is counted at most ...
local BEHIND = 1000 -- ... and that the others are counted on after the first
local ASKED = 3600000 -- ms that somebody is asked to end its backend
local ENDS = 256 -- backends that a session is asked to end, or to look for, at once
local LOOK = 200 -- ms between two looks of the fleet, at least
local AWAIT = 1000 -- ms that a look comes before everything else
local DENIED = 60000 -- ms until a look is tried again that Redis has refused, and after which a row of looks is over

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

-- The pid and start of a record, or nil for one that names no backend.
local function named(backend) return backend and string.match(backend, '^[1-9]%d* %d+') end

-- Records the backend that a permit covers: "<pid> <start> <server> <n>". `server` is when that
-- Postgres server was started. n grows with each record of the permit. `known` is what is recorded.
-- Marks and heartbeats travel on several connections and can overtake each other: the record of the
-- highest n stays.
--
-- Invariant, on which looks rest: while a record names a backend, its permit covers no other one,
-- and none is being opened under it. So the holder, before it opens another connection under the
-- permit, records "0 0 0 <n>", and waits until that is confirmed. A late mark of the former backend
-- has a lower n, and changes nothing.
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
  local all = redis.call('HGETALL', backends)
  for i = 1, #all, 2 do
    local session = session_of(all[i])
    if named(all[i + 1]) and not seen[session] then
      if session == own then return own end
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
      local backend = fence and named(redis.call('HGET', backends, id))
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

-- Looks. A process that was killed leaves leases that go on, and backends that Postgres ends at
-- once. A subscription that is gone is a hint that its session was killed, and no more: a session
-- can lose its subscription and live. So a script that leaves somebody waiting asks one session to
-- look in pg_stat_activity for the recorded backends of each session without a subscription. To
-- look ends nothing.
--
--          asked to look         not there: gone.lua, if the record is the same
--   held ---------------> held ------------------------------------------------> free
--                          |
--                          | still there, or not seen: nothing changes
--                          v
--                         held
--
-- Why this exceeds no capacity. A backend that is gone never comes back: its pid can, with another
-- start. By the invariant of cover nothing else is under a permit whose record names that backend.
-- gone.lua compares the record and drops the permit in one step. If the holder lives, and is about
-- to open a connection under the permit, its "0 0 0 <n>" comes either before that step, which then
-- drops nothing, or after it, and is refused.
--
-- A look that comes too late is of no use: where few have a connection to look by, those who wait
-- could be given just these. So where no more such connections are left than requests wait, no
-- permit moves for AWAIT: the look comes first. It does so once in a row of looks that free
-- nothing: a session that lives without a subscription holds nobody up for longer.
local function awaits_look() return fence and pace_of('await', 0, now + AWAIT) > now end

-- Asks at most every LOOK. Returns when the next look may be, ms, or 0 if others see to that; and
-- whether this row of looks is so new that it may just have held everything else up. So one session
-- of those that wait comes again every LOOK. `own`, which runs this script, lives.
local function ask_look(own)
  if not fence then return 0 end
  local last = pace_of('look', 0, now + DENIED)
  if last > now then return awaits_look() and last or 0 end
  redis.call('HSET', meta, 'look', whole(now + LOOK))
  local live, listens, absent = redis.call('ZRANGEBYSCORE', sessions, '(' .. whole(now), '+inf'), {}, false
  for from = 1, #live, 100 do
    local channels = {}
    for i = from, math.min(from + 99, #live) do channels[#channels + 1] = channel_of(live[i]) end
    local found = redis.pcall('PUBSUB', sharded and 'SHARDNUMSUB' or 'NUMSUB', unpack(channels))
    if found.err then
      redis.call('HSET', meta, 'look', whole(now + DENIED))
      return 0
    end
    for i = 1, #channels do
      local session = live[from + i - 1]
      listens[session] = tonumber(found[2 * i]) > 0
      absent = absent or not listens[session] and session ~= own
    end
  end

  local all, able, seen, eyes, suspects = absent and redis.call('HGETALL', backends) or {}, {}, {}, 0, {}
  for i = 1, #all, 2 do
    local session, backend = session_of(all[i]), all[i + 1]
    if string.match(backend, '^[1-9]%d* %d+ %d+ %d+$') then
      if listens[session] then
        eyes = eyes + 1
        if not seen[session] then able[#able + 1] = session end
        seen[session] = true
      elseif listens[session] == false and session ~= own then
        suspects[#suspects + 1] = all[i] .. ' ' .. backend
      end
    end
  end
  if #able == 0 or #suspects == 0 then
    redis.call('HDEL', meta, 'await') -- not looks: a session that lives is no new row each time it connects again
    -- A session that lost its subscription sees nobody else missing. Another may see it missing, and
    -- asks in between.
    if listens[own] == false then redis.call('HSET', meta, 'look', whole(now + LOOK / 2)) end
    return now + LOOK, false
  end
  local began = pace_of('looks', 0, now)
  if began == 0 or now - last > DENIED then
    began = now
    redis.call('HSET', meta, 'looks', whole(began))
  end
  if eyes <= redis.call('ZCARD', queue) then
    redis.call('HSET', meta, 'await', whole(began + AWAIT))
  else
    redis.call('HDEL', meta, 'await')
  end
  table.sort(able)
  table.sort(suspects)
  -- They take turns, for at capacity one may have no connection to look by; and so do the backends,
  -- where there are too many for one push.
  local turn, words = redis.call('HINCRBY', meta, 'seq', 1), { 's ' .. epoch }
  for i = 1, math.min(#suspects, ENDS) do words[i + 1] = suspects[(turn + i) % #suspects + 1] end
  push(able[turn % #able + 1], table.concat(words, ' '))
  return now + LOOK, now - began < 2 * AWAIT
end
