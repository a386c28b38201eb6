-- quarantine: the end of leases. After shares, before every script.

local BOUND = 10000 -- ms that a permit in quarantine is counted at most ...
local BEHIND = 1000 -- ... and that the others are counted on after the first
local ASKED = 3600000 -- ms that somebody is asked to end its backend
local ENDS = 256 -- backends that a session is asked to end at once

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
