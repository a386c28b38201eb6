-- common: runs behind memory. First of the shared parts, which run in this order: common,
-- repair, state, levels, quarantine, queue. Behind them run looks, recalls, sessions and sweep, as far
-- as the script needs them, then the script; see redisscript.go.
--
-- KEYS   all that are named below   ARGV   1 Redis's time as the caller expects it, ms, 0: unknown
--
-- A permit's UUID names its owner, so ownership needs no record that could drift. Characters 1-18
-- are the session, 16-17 its weight, and 1-23 the pool: one connection pool of that session, or
-- PLAIN for a permit that no pool holds. UUIDs of other clients (the original's are of version 4)
-- belong to no session here; the scripts only count them.
--
-- meta   epoch     names this state: a session that knows another epoch knows that Redis forgot
--        seq       counts requests, promises and turns; see next_seq
--        cap       the capacity in force; limit: the one that an operator set
--        gate      ms until which grants are paused, because state was lost; early: ms from which
--                  that may end early; known: sessions there were before; news: those of info that
--                  joined since, see may_grant
--        count     permits that scripts added, less those removed: others removed what is missing
--        reserve   the sum of the positive values of "free": permits kept for their sessions. It is
--                  there only while a session has a minimum; without it scripts look nothing up
--        skew      the server's time less ours, ms; last: our time at the last heartbeat; see state
--        lease     ms: no live session, and no permit of a dead one, has a shorter lease;
--                  leasenext, leasesince: see keep_shortest_lease
--        move      what it costs to move a permit, us: close to EOF, grant and connect, as sessions
--                  measure it, smoothed; turn: ms until which rotation is scheduled, see next_turn
--        calm      ms: when a pool last asked for its first permit; young: when a session last
--                  joined; calm0, young0: since when such events go on; see note
--        pause     an operator's: see pause.lua; without it grants go on. limitby, limitat: which
--                  operator set the limit, and ms when
--        fence     there while a permit may have a backend recorded; without it scripts look at
--                  neither backends nor quarantine
--        look      ms until which no session is asked to look for backends; looks: since when such
--                  looks go on; answered: when a session first said that it saw nothing gone; await:
--                  until when a look comes before everything else; see ask_look

local PUSH = { -- messages to a session: a kind and what follows it
  grant = 'g', -- <epoch> <now, ms> <UUID>...: these permits are granted
  wanted = 'w', -- <pool>: a request waits, so the pool should offer its idle permits
  recall = 'b', -- <epoch> <pool> <recalled> <withdrawn> <delay, ms>: see push_recalls
  retry = 'r', -- one of the session's requests left the queue: ask again
  lost = 'l', -- state was lost: send a heartbeat at once
  fence = 'f', -- (<UUID> <pid> <start>)...: end these backends
  look = 's', -- <epoch> <looks, ms> (<UUID> <pid> <start> <server> <n>)...: are these backends gone?
  heartbeat = 'h', -- tells nothing: Redis's answer counts the session's subscriptions
}
local ASK = { -- kinds of requests that a session asks for
  try = 't', -- all of its permits or none, now
  wait = 'w', -- all or none, waiting in the queue
  hold = 'e', -- permits that are held: extends their lease
  pool = 's', -- for a pool: as many as are free and it may have at once, or it waits for one
  join = 'j', -- the same, for a pool that was granted nothing yet: see at_once
}

local PLAIN = '8000'
local STEP = 0.08 -- of the shortest lease: a clock that is off by more was set; 400 ms of 5 s
local SHORTEST = 100 -- ms; no lease is shorter, and one that is unknown counts as this
local DAY = 86400000 -- ms; no lease is longer
local RANK = 1099511627776 -- 2^40: a request's rank counts before the order of arrival
local LEVELS = 16 -- ranks to one permit of a pool of weight 1
local WANTS = 16 -- most permits of one request that are counted; the low part of its place

local permits = KEYS[1] -- zset: UUID -> expiry of its lease, ms (the original PassBuddy's layout)
local queue = KEYS[2] -- zset: request, "<ttl, ms> <UUID>[ <UUID>...]" -> its place, see enqueue
local meta = KEYS[3] -- hash: see above
local sessions = KEYS[4] -- zset: session -> expiry, ms
local info = KEYS[5] -- hash: session that knows this state -> JSON for operators; see may_grant
local capacities = KEYS[6] -- zset: session -> the capacity that it declares
local levels = KEYS[7] -- zset "levels": pool that can give a permit back -> its level, see place
local held_counts = KEYS[8] -- hash "held": pool -> how many permits it holds
local debts = KEYS[9] -- hash: pool -> how many of those it owes: it was asked to give them back
local promises = KEYS[10] -- zset: "<number> <pool>[ <kind>]" -> expiry, ms; see promise
local reserves = KEYS[11] -- hash: "min <session>" -> its minimum; "free <session>": see min_lacks
local backends = KEYS[12] -- hash: UUID -> "<pid> <start, us> <server, us> <n>", see record_backend
local quarantine = KEYS[13] -- hash: UUID -> "<pid> <start, us> <until, ms>", see quarantine_permit
local recalls = KEYS[14] -- hash: "+<pool>" -> permits ever recalled, "-<pool>" -> recalls withdrawn
local moves = KEYS[15] -- zset: pool that connects for its first permit -> ms until when, see MOVING
local events = KEYS[16] -- stream: what changed, for operators; see record_event

-- Every script knows these behind state.
local server_time, now -- ms; now is the time that decides
local epoch, paused_until, last, lease -- of meta; epoch is false if the state counts as lost
local cap, reserve -- of meta: the capacity before this script; nil if no session has a minimum
local has_backends -- whether a permit may have a backend recorded
local pause -- an operator's: {since, ms; upto, ms; whether it drains}; nil: none
local change = 0 -- permits that this script has added, less those it has removed

local function whole(n) return string.format('%.0f', n) end -- Lua would print a time as 1.7e+12
local function session_of(id) return string.sub(id, 1, 18) end
local function pool_of(id) return string.sub(id, 1, 23) end
local function is_ours(id) return string.sub(id, 15, 15) == '8' end -- no script counts others in
local function is_pooled(id) return string.sub(id, 20, 23) ~= PLAIN end
local function weight_of(pool) return math.max(1, tonumber(string.sub(pool, 16, 17), 16) or 1) end

local function between(k, a, b) return redis.call('ZRANGEBYSCORE', k, a, b, 'LIMIT', 0, 100) end
local function extend(id, ttl) return redis.call('ZADD', permits, whole(now + ttl), id) end
local function set_meta(field, n) redis.call('HSET', meta, field, whole(n)) end
local function is_live(session)
  local expiry = redis.call('ZSCORE', sessions, session)
  return expiry and tonumber(expiry) > now
end
local sharded = redis.REDIS_VERSION_NUM and redis.REDIS_VERSION_NUM >= 0x00070000
local function channel_of(session) return '{' .. permits .. '}:push:' .. session end
-- pcall: where an ACL denies the channel, the script must not end half-way. A lost push costs time.
local function push(session, message)
  return redis.pcall(sharded and 'SPUBLISH' or 'PUBLISH', channel_of(session), message)
end
