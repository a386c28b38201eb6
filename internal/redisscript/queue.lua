-- queue: who is granted what is free, and when. After quarantine, before every script.

local MOVING = 10000 -- ms that a pool which was granted its first permit is believed to be connecting
local CALM = 20 -- ms after somebody asked for its first permit in which nobody is granted more than its even part
local YOUNG = 30 -- ms after a session joined in which nobody is granted more than one permit
local JOINING = 150 -- ms for which that goes on at most, however many come

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
