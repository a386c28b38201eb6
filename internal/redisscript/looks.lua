-- looks: runs behind queue. Finds backends that are gone before their leases are over.

local LOOK = 200 -- ms between two looks of the fleet, at least
local AWAIT = 1000 -- ms that a look comes before everything else, at least ...
local UNANSWERED = 5000 -- ... and at most, while no session has answered; a look takes no longer
local DENIED = 60000 -- ms until a refused look is tried again; looks further apart are no row

-- A process that was killed leaves leases that go on, and backends that Postgres ends at
-- once. A subscription that is gone is a hint that its session was killed, and no more: a session
-- can lose its subscription and live. So a script that leaves a request waiting asks one session to
-- look in pg_stat_activity for the recorded backends of each session without a subscription. If one
-- is not there, gone.lua releases its permit; if it is, or is not seen, nothing changes.
--
-- Why this exceeds no capacity: a backend that is gone never comes back (its pid can, with another
-- start). By the invariant of record_backend nothing else is under a permit whose record names it.
-- gone.lua compares the record and releases the permit in one step. A holder that lives, and is
-- about to open a connection under the permit, sends "0 0 0 <n>". That comes either before the
-- step, which then releases nothing, or after it, and is refused.
--
-- A look that comes too late is of no use: where few sessions have a connection to look by, those
-- could be granted to the waiters. So where no more such connections are left than requests wait,
-- no permit moves until a session has answered, and for AWAIT at least: Postgres can be a moment
-- behind the crash. On a slow machine the answer takes longer than AWAIT. The look comes first once
-- in a row of looks that free nothing: a session that lives without a subscription holds nobody up
-- for longer. gone.lua takes the answers.
local function awaits_look() return has_backends and read_meta('await', 0, now + UNANSWERED) > now end
local function await_end(began) -- of a row of looks: ms until when it comes first
  local answered = read_meta('answered', 0, now)
  return answered < began and began + UNANSWERED or math.max(began + AWAIT, answered)
end
local function find_subscribed() -- live session -> whether it is; nil if Redis refuses to say
  local live, subscribed = redis.call('ZRANGEBYSCORE', sessions, '(' .. whole(now), '+inf'), {}
  for from = 1, #live, 100 do
    local channels = {}
    for i = from, math.min(from + 99, #live) do channels[#channels + 1] = channel_of(live[i]) end
    local found = redis.pcall('PUBSUB', sharded and 'SHARDNUMSUB' or 'NUMSUB', unpack(channels))
    if found.err then return nil end
    for i = 1, #channels do subscribed[live[from + i - 1]] = tonumber(found[2 * i]) > 0 end
  end
  return subscribed
end
-- Returns the records of sessions without a subscription, as PUSH.look has them; the sessions that
-- can look for these backends; and how many connections they have to look by.
local function find_suspects(subscribed, own)
  local absent, suspects, able, eyes, seen = false, {}, {}, 0, {}
  for session, listens in pairs(subscribed) do absent = absent or not listens and session ~= own end
  local all = absent and redis.call('HGETALL', backends) or {}
  for i = 1, #all, 2 do
    local session, record = session_of(all[i]), all[i + 1]
    local names = string.match(record, '^[1-9]%d* %d+ %d+ %d+$')
    if names and subscribed[session] then
      eyes = eyes + 1
      if not seen[session] then able[#able + 1] = session end
      seen[session] = true
    elseif names and subscribed[session] == false and session ~= own then
      suspects[#suspects + 1] = all[i] .. ' ' .. record
    end
  end
  table.sort(able)
  table.sort(suspects)
  return suspects, able, eyes
end

-- Asks for a look, at most every LOOK. Returns when the next look may be, ms, or 0 if others see to
-- that. Also returns whether this row of looks is so new that it may just have held everything else
-- up. So one session of those that wait comes again every LOOK. `own` runs this script, and lives.
local function ask_look(own)
  local last_look = has_backends and read_meta('look', 0, now + DENIED)
  if not last_look then return 0 end
  if last_look > now then return awaits_look() and last_look or 0 end
  local subscribed = find_subscribed()
  set_meta('look', now + (subscribed and LOOK or DENIED))
  if not subscribed then return 0 end
  local suspects, able, eyes = find_suspects(subscribed, own)
  if #able == 0 or #suspects == 0 then
    -- `looks` stays: a session that lives is no new row each time it connects again.
    local awaited = awaits_look()
    redis.call('HDEL', meta, 'await')
    -- A session without a subscription may miss no other. One that misses it asks in between.
    if subscribed[own] == false then set_meta('look', now + LOOK / 2) end
    return now + LOOK, awaited
  end
  local began = read_meta('looks', 0, now)
  if began == 0 or now - last_look > DENIED then
    began = now
    set_meta('looks', began)
  end
  local scarce, till = eyes <= redis.call('ZCARD', queue), await_end(began)
  if scarce then set_meta('await', till) else redis.call('HDEL', meta, 'await') end
  -- One session is asked after the other, for at capacity one may have no connection to look by.
  -- Backends are asked for in parts, where there are too many for one push.
  local turn, words = redis.call('HINCRBY', meta, 'seq', 1), { PUSH.look .. ' ' .. epoch .. ' ' .. whole(began) }
  for i = 1, math.min(#suspects, ENDS) do words[i + 1] = suspects[(turn + i) % #suspects + 1] end
  push(able[turn % #able + 1], table.concat(words, ' '))
  return now + LOOK, now < till + AWAIT
end
