-- queue: runs behind quarantine. Decides which request is granted what is free, and when.

local MOVING = 10000 -- ms that a pool which was granted its first permit is believed to connect
local CALM = 20 -- ms after a pool asked for its first permit in which none gets more than its part
local YOUNG = 30 -- ms after a session joined in which no pool is granted more than one permit
local JOINING = 150 -- ms for which that goes on at most, however many come

-- Returns how many of n permits a session can have of `free`: the minima of others come first.
local function grantable(n, free, session)
  n = math.min(n, free)
  if not reserve or n <= 0 then return n end
  return math.min(n, math.max(0, min_lacks(session) or 0) + math.max(0, free - reserve))
end

local function parse(request) -- returns its lease, ms, and its UUIDs
  local ids, ttl, rest = {}, string.match(request, '^(%d+) (.+)$')
  for id in string.gmatch(rest or '', '%S+') do ids[#ids + 1] = id end
  return tonumber(ttl), ids
end
-- Returns the order of arrival in a place in the queue; nil if no script has made that place.
local function seq_of(place) return is_exact(place) and math.floor(place % RANK / WANTS) or nil end

-- Joining. When a fleet starts, the first pool to ask could be granted all there is. It would have
-- to give most of it back to those that ask a moment later, each time for a connect. Therefore:
--   - A pool's first grant is at most its even part, by the weights of the live sessions.
--   - What it asks for beyond that is granted CALM after the last pool asked for its first permit.
--   - Within YOUNG of a session's joining nobody knows what is even, and each pool is granted one.
-- A row of such events goes on for JOINING at most: pods that come one after the other must not
-- stop the fleet. Two fields of meta keep a row, one for its last event and one for when it began.
local function note(row, span)
  if now - read_meta(row, 0, now) > span then set_meta(row .. '0', now) end
  set_meta(row, now)
end
local function goes_on_until(row, span)
  return math.min(read_meta(row, 0, now) + span, read_meta(row .. '0', 0, now) + JOINING)
end
local function young_until() return goes_on_until('young', YOUNG) end
local function calm_until() return math.max(goes_on_until('calm', CALM), young_until()) end
local function even_part(pool, capacity)
  local sum = 0
  for _, s in ipairs(redis.call('ZRANGE', sessions, 0, -1)) do sum = sum + weight_of(s) end
  return math.max(1, math.floor(capacity * weight_of(pool) / math.max(1, sum)))
end
-- Returns how many of n free permits a pool is granted now: its session's minimum in any case.
local function at_once(pool, n, capacity, joins)
  if joins then note('calm', CALM) elseif calm_until() <= now then return n end
  local held = held_by(pool)
  if n == 1 and held == 0 then return n end
  local part = young_until() > now and 1 or even_part(pool, capacity)
  return math.min(n, math.max(0, part - held, min_lacks(session_of(pool)) or 0))
end

-- Grants free capacity to the head of the queue. Returns what is left free. Stops at the first
-- request that does not fit, or is to wait for the end of the calm: those behind it do not pass.
-- Requests of dead sessions, and those that can never fit, leave the queue. Grants to `own` are
-- appended to `granted`; all others are pushed to their session.
local function grant_queue(capacity, own, granted)
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
      push(session, PUSH.retry)
    elseif grantable(#ids, free, session) < #ids or is_pooled(ids[1]) and calm_until() > now
      and at_once(pool_of(ids[1]), 1, capacity) < 1 then
      return free
    else
      redis.call('ZREM', queue, head)
      for _, id in ipairs(ids) do
        local pool = is_pooled(id) and pool_of(id)
        if pool and held_by(pool) == 0 then redis.call('ZADD', moves, whole(now + MOVING), pool) end
        grant(id, ttl)
        if session == own then granted[#granted + 1] = id end
      end
      local words = PUSH.grant .. ' ' .. epoch .. ' ' .. whole(now) .. ' ' .. table.concat(ids, ' ')
      if session ~= own then push(session, words) end
      free = free - #ids
    end
  end
  return free
end
