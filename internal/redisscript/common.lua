-- Shared by every script of the semaphore, and put in front of each of them.
--
-- KEYS   1 permits     zset   permit UUID -> expiry of its lease, ms (the original PassBuddy's layout)
--        2 queue       zset   request -> rank; a request is "<ttl ms> <UUID>[ <UUID>...]"
--        3 meta        hash   see below
--        4 sessions    zset   session -> expiry, ms
--        5 info        hash   session -> JSON for operators
--        6 capacities  zset   session -> the capacity it declares
--        7 shares      zset   sharer that can give a permit back -> its level, see place
--        8 held        hash   sharer -> permits it holds
--        9 debts       hash   sharer -> how many of those it was asked to give back
--       10 promises    zset   "<number> <sharer>[ t]" -> expiry, ms; one for each permit a waiter can count on, see promise
--       11 reserves    hash   "min <session>" -> its guaranteed minimum; "free <session>" -> minimum less what it holds and does not owe
--       12 backends    hash   permit UUID -> "<pid> <start, us> <server, us> <n>", the Postgres backend that it covers, if its holder says so;
--                             "0 0 0 <n>" while the holder may be opening another one: see cover
--       13 quarantine  hash   permit UUID -> "<pid> <start, us> <until, ms>", see isolate
--       14 recalls     hash   "+<sharer>" -> permits ever recalled from it; "-<sharer>" -> recalls withdrawn; see tell_owed
--       15 moves       zset   sharer that held none and opens a connection for what it was granted from the queue -> ms until which that is believed
--
-- A permit's UUID names its owner: characters 1-18 are the session, 1-23 the sharer (one connection pool of
-- that session, or PLAIN for a permit that no pool holds), and 16-17 the session's weight. So ownership needs no record of its own that could
-- drift. UUIDs of other clients (the original's are version 4) belong to no session here and are only counted.
--
-- meta   epoch     names this state; a session that knows another one knows that Redis forgot
--        seq       counts requests and promises
--        cap       the capacity in force        limit   an operator's
--        gate      ms until which nothing new is granted, because state was lost; see renew
--        early     ms from which that may end early; known: how many sessions there were; news: how many have joined since
--        count     permits that scripts have added and not removed: where that is more than there are, somebody else removed some
--        reserve   the sum of the positive values of "free": permits kept for their sessions, that nobody else is granted. It is there only
--                  while some session has a minimum, so that without any nothing is looked up
--        skew, last   see the clock
--        lease     ms: no session that lives, and no permit of one that does not, has a shorter lease; leasenext, leasesince: see renew
--        move      what it costs to move a permit, us: close to EOF, grant and connect, as sessions measure it, smoothed
--        turn      ms until which rotation is scheduled, see next_turn
--        calm, calm0, young, young0   when somebody last asked for its first permit, and when a session last joined, and since when that has been going on:
--                  ms, see Joining
--        fence     there while a permit may have a backend recorded: without it, backends and quarantine are not looked at
--        look, looks, await   ms: until when no session is asked to look for backends; since when that goes on; until when it comes before
--                  everything else: see ask_look
--
-- ARGV   1 Redis's time as its caller expects it, ms, 0 if it has never heard of it; the rest is the script's
--
-- The clock. Only Redis's own decides, read once per script (Redis 5 and later replicate a script's effects, not its text). But it can be
-- set, and an hour on would then end all leases at once, an hour back keep the dead. So `now` is the server's time less `skew`, and runs on
-- evenly: a time before the last heartbeat's (`last`) is a step back; one that is ahead both of that and of what the caller expects, by
-- his monotonic clock, is a step on. Should it be no step but a server or a fleet that slept: then the leases slept too, and last longer than
-- their holders trust them. That errs on the safe side. A step that is too small to be noticed must not outlast the margin between the end of
-- trust and the end of a lease, a tenth of it. So what counts as a step follows the shortest lease in the fleet, whoever calls.

local permits, queue, meta, sessions, info = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local capacities, shares, helds, debts, promises, reserves = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local backends, quarantine, recalls, moves = KEYS[12], KEYS[13], KEYS[14], KEYS[15]

local PLAIN = '8000'
local STEP = 0.08 -- of the shortest lease: by that a clock must be off to have been set; 400 ms of 5 s
local SHORTEST = 100 -- ms; no lease is shorter, which is what counts where none is known
local RANK = 1099511627776 -- 2^40: a request's rank counts before the order of arrival
local LEVELS = 16 -- ranks to one permit of a sharer of weight 1
local WANTS = 16 -- most permits of one request that are counted; the low part of its place in the queue
local DAY = 86400000 -- ms; no lease is longer

local time = redis.call('TIME')
time = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', meta, 'epoch', 'cap', 'gate', 'reserve', 'count', 'skew', 'last', 'fence', 'lease')
local epoch, gate, reserve = state[1], tonumber(state[3] or 0), tonumber(state[4] or '')

-- What no script would have written there was put there by somebody's hand. It goes, and what it stood for is lost: so is the state, then, like in
-- any other way. Here that costs a sum; a heartbeat looks closely.
local function sound(value, field)
  local n = tonumber(value or 0)
  if n and n * n < 2 ^ 106 and n % 1 == 0 and (n >= 0 or field == 'skew') then return value end
  redis.call('HDEL', meta, field, 'epoch')
  epoch = false
  return false
end
local count, skew, last = tonumber(state[5] or 0), tonumber(state[6] or 0), tonumber(state[7] or 0)
local cap, kept = tonumber(state[2] or 0), reserve or state[4] == false and 0
if not (gate and count and skew and last and cap and kept
    and gate * gate + count * count + skew * skew + last * last + cap * cap + kept * kept < 2 ^ 106) then
  for i, field in ipairs({ 'cap', 'gate', 'reserve', 'count', 'skew', 'last' }) do state[i + 1] = sound(state[i + 1], field) end
  gate, reserve, count = tonumber(state[3] or 0), tonumber(state[4] or ''), tonumber(state[5] or 0)
  skew, last = tonumber(state[6] or 0), tonumber(state[7] or 0)
end

-- A length of leases as it is stored. What no script would have written is taken for the shortest: that errs on the safe side.
local function lease_of(value)
  local n = tonumber(value or '')
  return n and n >= SHORTEST and n <= DAY and n or SHORTEST
end
local lease = lease_of(state[9])
local step = math.floor(STEP * lease)

local now, expected = time - skew, tonumber(ARGV[1])
if last - math.max(now, expected) > DAY then last = tonumber(sound('no such time', 'last') or 0) end
if now < last - step or last > 0 and expected > 0 and now - math.max(last, expected) > step then
  now = math.max(last, expected - step)
  redis.call('HSET', meta, 'skew', string.format('%.0f', time - now))
end

local function fences() return redis.call('HLEN', backends) + redis.call('HLEN', quarantine) > 0 end
local fence = state[8] or not epoch and fences()

-- The set is gone, but permits are held: that is state lost like any other. Single ones that are missing were revoked by somebody's hand.
if epoch then
  local there = redis.call('ZCARD', permits)
  if there == 0 and count > 1 then
    redis.call('HDEL', meta, 'epoch')
    epoch = false
  elseif there < count then
    redis.call('HSET', meta, 'count', there)
  end
end
local change = 0
local function tally()
  if change ~= 0 then redis.call('HINCRBY', meta, 'count', change) end
end

-- 2^53 ms holds every time there is; %.0f because Lua would print 1.7e+12.
local function whole(n) return string.format('%.0f', n) end
local function session_of(id) return string.sub(id, 1, 18) end
local function sharer_of(id) return string.sub(id, 1, 23) end
-- Other clients' UUIDs are of another version. They were never counted in, so they must not be counted out when they expire.
local function is_ours(id) return string.sub(id, 15, 15) == '8' end
local function is_shared(id) return string.sub(id, 20, 23) ~= PLAIN end
local function weight_of(sharer) return math.max(1, tonumber(string.sub(sharer, 16, 17), 16) or 1) end

local sharded = redis.REDIS_VERSION_NUM and redis.REDIS_VERSION_NUM >= 0x00070000
local function channel_of(session) return '{' .. permits .. '}:push:' .. session end
local function push(session, message)
  -- pcall: a user whom the ACL denies the channel must not have the script end half-way. A push lost costs time only.
  return redis.pcall(sharded and 'SPUBLISH' or 'PUBLISH', channel_of(session), message)
end

local function is_live(session)
  local expiry = redis.call('ZSCORE', sessions, session)
  return expiry and tonumber(expiry) > now
end

-- Ends the gate early: all that any session knew of are back, and those that nobody knew of yet have had time for a heartbeat.
local function open_gate()
  if gate <= now then return true end
  local m = redis.call('HMGET', meta, 'early', 'known', 'news')
  local known = tonumber(m[2] or 0)
  if now < tonumber(m[1] or gate) or known == 0 or redis.call('ZCARD', sessions) - tonumber(m[3] or 0) < known then return false end
  gate = now
  redis.call('HSET', meta, 'gate', whole(gate))
  return true
end
