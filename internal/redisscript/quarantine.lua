-- quarantine: runs behind levels. The end of leases, and the end of backends before that.

local BOUND = 10000 -- ms that a permit in quarantine is counted at most ...
local BEHIND = 1000 -- ... and that the others are counted on after the first
local ASKED = 3600000 -- ms that sessions are asked to end its backend
local ENDS = 256 -- backends that a session is asked to end, or to look for, at once
local NO_BACKEND = '0 0 0' -- in place of a backend

-- Quarantine. A lease that expires says nothing of its connection: a process that is stopped closes
-- none. So a permit that has a backend recorded is not released then. It goes on counting as held,
-- but for no pool and no minimum, and its holder cannot renew it.
--
--   held -- expires --> in quarantine -- its backend is gone, says a session: release --> free
--                             |                                                            ^
--                             +-- BOUND has passed; its backend is still asked for --------+
--
-- Where no live session has a connection to end backends by, the one place that is free after BOUND
-- gives a session one. It has ended the other backends before their places are free, BEHIND later.
local function pid_and_start(record) -- nil if the record names no backend
  return record and string.match(record, '^[1-9]%d* %d+')
end
local function quarantine_permit(id, backend)
  redis.call('HDEL', backends, id)
  extend(id, BOUND + (redis.call('HLEN', quarantine) > 0 and BEHIND or 0))
  redis.call('HSET', quarantine, id, backend .. ' ' .. whole(now + ASKED))
  uncount(id)
end
local function is_quarantined(id)
  return has_backends and redis.call('HEXISTS', quarantine, id) == 1
end

-- Records the Postgres backend that a permit covers: "<pid> <start, us> <server, us> <n>". `server`
-- is when that Postgres server was started; n grows with each record of the permit; `known` is the
-- record there. Records and heartbeats travel on several connections and can overtake each other:
-- the record of the highest n stays.
--
-- Invariant, on which looks rest: while a record names a backend, its permit covers no other one,
-- and none is being opened under it. So the holder, before it opens another connection under the
-- permit, records "0 0 0 <n>", and waits until that is confirmed. A late record of the former
-- backend has a lower n, and changes nothing.
local function record_backend(id, record, known)
  local function nth(text) return tonumber(string.match(text, '%d+$') or '0') end
  if not known or nth(known) < nth(record) then redis.call('HSET', backends, id, record) end
end
local function backends_to_end() -- iterates over those in quarantine, or asked for after it
  local ids, i = redis.call('HKEYS', quarantine), 0
  table.sort(ids)
  return function()
    while ids[i + 1] and i < ENDS do
      i = i + 1
      local backend = redis.call('HGET', quarantine, ids[i])
      local names = string.match(backend, '^[1-9]%d* %d+ %d+$')
      if names then return ids[i], backend end
      if backend ~= NO_BACKEND or not redis.call('ZSCORE', permits, ids[i]) then
        redis.call('HDEL', quarantine, ids[i]) -- no script has written that, or its lease is over
      end
    end
  end
end
local function push_fence(session) -- a lost push costs time only: see renew
  local words = { PUSH.fence }
  for id, backend in backends_to_end() do
    words[#words + 1] = id .. ' ' .. string.match(backend, '^%d+ %d+')
  end
  if #words > 1 then push(session, table.concat(words, ' ')) end
end

-- Returns a live session that has a connection to end backends by, or nil: at capacity none may be
-- opened. `own`, which runs this script, is alive for sure; else it is one session after the other.
local function choose_fencer(own)
  local all, able, seen = redis.call('HGETALL', backends), {}, {}
  for i = 1, #all, 2 do
    local session = session_of(all[i])
    if pid_and_start(all[i + 1]) and not seen[session] then
      if session == own then return own end
      seen[session] = true
      if is_live(session) then able[#able + 1] = session end
    end
  end
  table.sort(able)
  return #able > 0 and able[redis.call('HINCRBY', meta, 'seq', 1) % #able + 1] or nil
end

local function expire_leases(own) -- releases their permits, or puts them in quarantine
  local added, owners = false, {}
  repeat
    local expired = between(permits, '-inf', now)
    for _, id in ipairs(expired) do
      local backend = has_backends and pid_and_start(redis.call('HGET', backends, id))
      if backend then
        quarantine_permit(id, backend)
        added, owners[session_of(id)] = true, (owners[session_of(id)] or 0) + 1
      elseif is_quarantined(id) then
        change = change - redis.call('ZREM', permits, id) -- BOUND has passed, or it was revoked
        if redis.call('HGET', quarantine, id) == NO_BACKEND then redis.call('HDEL', quarantine, id) end
      else
        release(id)
      end
    end
  until #expired == 0
  for session, n in pairs(owners) do
    record_event('quarantined', session, n .. (n == 1 and ' permit' or ' permits'))
  end
  local fencer = added and choose_fencer(own)
  if fencer then push_fence(fencer) end
end
